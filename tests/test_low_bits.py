"""Activations below 8 bits: what matrices read is rounded, and weights are fitted to what they then see."""

from __future__ import annotations

import pytest
import stripes
import torch

from tersor.errors import InputError, TargetError
from tersor.feeds import RANGES
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.losses.kl import KL
from tersor.profile import Profile, measure
from tersor.recipe import Recipe, read_recipe
from tersor.recovery.network import Network, Teacher
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import matrices, sites
from tersor.target import Compressed, Grid
from tersor.targets import target_called
from tersor.techniques.gptq import GPTQ


@pytest.fixture(scope="module")
def ground() -> tuple[Model, list, Profile]:
    x, _ = stripes.images(512, 5)
    model = fold_norms(capture(stripes.trained(), (x[:2],)))
    batches = [(part,) for part in x.split(128)]
    return model, batches, measure(model, batches)


def apart(ground: tuple[Model, list, Profile], compressed: Compressed) -> float:
    x, _ = stripes.images(500, 9)
    return float(KL(1.0)(Network(compressed)((x,), training=False), Teacher(ground[0])((x,)), None).detach())


def fitted(ground: tuple[Model, list, Profile], bits: int, weights: int = 4) -> Compressed:
    model, batches, profile = ground
    techniques = {m.name: GPTQ(weights) for m in matrices(model)}
    return fit(model, batches, profile, Decisions(techniques=techniques, feeds="static", bits=bits))


def test_every_matrix_reads_through_a_grid_of_so_many_codes(ground):
    found = fitted(ground, 3)
    assert found.feeds.keys() == {site.activation for site in sites(ground[0])}
    widths = {name: feed.high - feed.low for name, feed in found.feeds.items() if isinstance(feed, Grid)}
    assert sorted(widths.values()) == [7, 7, 255]  # the images have 8 bits
    assert widths[found.model.inputs[0]] == 255


@pytest.mark.parametrize("bits", [8, 4])
def test_ranges_are_found_as_asked(ground, bits: int):
    model, batches, profile = ground
    techniques = {m.name: GPTQ(8) for m in matrices(model)}
    steps = {}
    for rule in RANGES:
        found = fit(model, batches, profile, Decisions(techniques=techniques, feeds="static", bits=bits, ranges=rule))
        feed = found.feeds["relu"]
        assert isinstance(feed, Grid)
        steps[rule] = feed.scale
    assert all(steps[rule] < steps["minmax"] for rule in ("average", "percentile"))
    assert all(0.3 * steps["minmax"] < step <= steps["minmax"] for step in steps.values())


def test_more_bits_lose_less(ground):
    lost = [apart(ground, fitted(ground, bits)) for bits in (2, 3, 5)]
    assert lost == sorted(lost, reverse=True)


def test_weights_that_saw_rounded_inputs_lose_less_than_weights_that_did_not(ground):
    aware = fitted(ground, 2)
    model, batches, profile = ground
    blind = fit(model, batches, profile, Decisions(techniques={m.name: GPTQ(4) for m in matrices(model)}))
    assert apart(ground, aware) < apart(ground, Compressed(blind.model, blind.weights, aware.feeds))


def test_only_matrices_see_the_rounded_values(ground):
    compressed = fitted(ground, 2)
    x, _ = stripes.images(4, 1)
    seen = Network(compressed)((x,), nodes=["relu", "add"], training=False)
    step = compressed.feeds["relu"].scale
    codes = seen.activation("relu") / step
    assert float((codes - codes.round()).abs().max()) > 0.01


def test_a_recipe_says_how_many_bits_and_impossible_ones_are_refused():
    decisions = Decisions(feeds="static", bits=4)
    text = Recipe(("eager", "fp32"), decisions, 0, 8, 1).to_yaml()
    assert read_recipe(text).decisions == decisions
    some = Decisions(feeds="static", ranges="average")
    assert read_recipe(Recipe(("eager", "fp32"), some, 0, 8, 1).to_yaml()).decisions == some
    assert "bits" not in Recipe(("eager", "fp32"), Decisions(feeds="static"), 0, 8, 1).to_yaml()
    for wrong in ({"bits": 4}, {"bits": 1, "feeds": "static"}, {"bits": 4, "feeds": "dynamic"}):
        with pytest.raises(InputError, match="2 to 8 bits are possible, below 8 with static feeds"):
            Decisions(**wrong)
    with pytest.raises(InputError, match="no ranges 'widest'; choose of best, minmax, average, percentile"):
        Decisions(ranges="widest")


def test_integer_runtimes_say_that_they_have_no_such_activations(ground, tmp_path):
    with pytest.raises(TargetError, match="integer runtimes"):
        target_called("onnxruntime", "int8").export(fitted(ground, 4), tmp_path)


def test_training_with_low_bits_goes_through_the_same_grids(ground):
    network = Network(fitted(ground, 2))
    x, _ = stripes.images(64, 3)
    loss = KL(1.0)(network((x,)), Teacher(ground[0])((x,)), None)
    loss.backward()
    steps = [p for name, p in network.parameters.items() if name == "step of relu"]
    assert steps[0].grad is not None
    assert torch.isfinite(steps[0].grad)
