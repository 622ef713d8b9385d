"""Activations below 8 bits: what matrices read is rounded, and weights are fitted to what they then see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stripes
import torch

from tersor.errors import InputError, TargetError
from tersor.feeds import RANGES
from tersor.fitting import Decisions, fit
from tersor.forms.affine import Affine, affine
from tersor.forms.dense import Dense
from tersor.graph.model import Model, capture
from tersor.losses.kl import KL
from tersor.maths.grid import Grid as IntegerGrid
from tersor.measuring.batches import Batches
from tersor.profile import Profile, measure
from tersor.recipe import Recipe, read_recipe
from tersor.recovery.course import Training
from tersor.recovery.loop import train
from tersor.recovery.network import Network, Teacher
from tersor.recovery.stream import Stream
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.insert_norms import insert_norms, places
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
    with pytest.raises(InputError, match="no kind of feeds 'sometimes'; choose one of none, static, dynamic"):
        Decisions(feeds="sometimes")
    with pytest.raises(InputError, match="no ranges 'widest'; choose one of best, minmax, average, percentile"):
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


def test_norms_stand_behind_weights_on_grids_and_fold_into_their_steps(ground):
    compressed = fitted(ground, 3, 2)
    model, (x, _) = compressed.model, stripes.images(300, 3)
    behind = [m.node for m in places(model, [m.name for m in matrices(model)])]
    compressed = replace(compressed, feeds={**compressed.feeds, behind[0]: Grid(0.05, 0, -127, 127)})
    bare = Network(compressed, moving_norms=False)
    student = Network(insert_norms(compressed, bare.moments(behind, [(x,)])))
    assert len(student.buffers) == 2 * len(behind) > 0

    def answers(network: Network) -> torch.Tensor:
        return network((x,), training=False).outputs["output"].detach()

    scale = answers(bare).abs().max()
    assert (answers(student) - answers(bare)).abs().max() < 1e-3 * scale
    data = Stream(Batches.of(*stripes.images(640, 5), size=64), 64)
    train(student, Teacher(ground[0]), data, Training(epochs=2.0))
    found = student.compressed()
    assert (answers(student) - answers(bare)).abs().max() > 0.01 * scale
    assert found.feeds.keys() == compressed.feeds.keys()
    assert found.weights.keys() == compressed.weights.keys()
    assert all(torch.equal(found.model.tensor(n), w.dense()) for n, w in found.weights.items())
    assert (
        answers(Network(found, moving_norms=False)) - answers(student)
    ).abs().mean() < 0.01 * scale  # a code may flip
    steps = [(a.scale, found.weights[n].scale) for n, a in compressed.weights.items() if isinstance(a, Affine)]
    assert len(steps) > 1
    assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in steps)


def test_only_weights_with_steps_of_their_own_rows_can_be_rescaled(ground):
    model = ground[0]
    codes = torch.tensor([[1, -2, 0], [0, 1, 1]])
    for scale, wanted in ((torch.tensor([[0.5], [0.25]]), True), (torch.tensor([[0.5]]), False)):
        grid = IntegerGrid(scale.double(), torch.zeros_like(scale).double(), 3, -2, 1)
        weight = affine(codes, grid, 2, (2, 3), 1, False)
        found = weight.rescaled(torch.tensor([2.0, 4.0]))
        assert (found is not None) == wanted
        if found is not None:
            torch.testing.assert_close(found.dense(), weight.dense() * torch.tensor([[2.0], [4.0]]))
    assert Dense(model.tensor(matrices(model)[0].weight)).rescaled(torch.ones(8)) is None
