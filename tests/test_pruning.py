"""`tersor.prune`: shares that are asked for are reached, promises are kept, the archive is what was judged."""

from __future__ import annotations

import dataclasses
import json

import pytest
import stripes
import torch
from torch import nn

import tersor
from tersor.errors import BudgetError, InputError, RecipeError
from tersor.fitting import Decisions, fit
from tersor.graph.model import capture
from tersor.maths.pattern import Anywhere
from tersor.profile import measure
from tersor.pruning import rewound
from tersor.recipe import Recipe, read_recipe
from tersor.recovery.loop import train
from tersor.rewrites.fold_norms import fold_norms
from tersor.targets import target_name
from tersor.techniques.sparse import Sparse


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return stripes.trained()


@pytest.fixture(scope="module")
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return stripes.batches()


def test_channels_go_until_the_share_is_reached(module, data, tmp_path):
    out = tmp_path / "small.pt2"
    found = tersor.prune(module, data, macs="1.5x", steps=2, threads=1, out=out)
    assert 1.5 <= found.original.macs / found.size.macs < 1.8
    assert found.widths
    assert [step.kept for step in found.steps] == [True, True]
    assert found.steps[0].size.macs > found.steps[1].size.macs == found.size.macs
    x = data[0][0]
    again = torch.export.load(out).module(check_guards=False)  # without Tersor
    torch.testing.assert_close(again(x), found.module(x))
    assert again(x).shape == module(x).shape
    assert json.loads(json.dumps(found.to_json()))["size"]["macs"] == found.size.macs


@pytest.mark.parametrize(
    ("wish", "share"),
    [
        ({"weights": "30%"}, 0.3),
        ({"weights": 0.5, "pattern": "rows", "criterion": "wanda"}, 0.5),
        ({"weights": "2x", "pattern": "4x1"}, 0.5),
        ({"pattern": "2:4"}, 0.5),
    ],
)
def test_weights_become_zero_as_asked(module, data, wish, share):
    found = tersor.prune(module, data, threads=1, metric="agreement", **wish)
    assert found.size.nonzero / found.size.weights == pytest.approx(share, abs=0.03)
    assert found.size.macs == found.original.macs
    assert found.drop.amount <= 0.02  # measured: nothing


def test_both_at_once(module, data):
    found = tersor.prune(module, data, macs="75%", weights="50%", threads=1)
    assert found.size.macs <= 0.75 * found.original.macs
    assert found.size.nonzero <= 0.52 * found.size.weights
    assert set(found.densities) == {"stem.0", "body.0", "head"}


def test_goes_as_far_as_the_promise_holds_and_goes_on_after_a_kill(module, data, monkeypatch):
    found = tersor.prune(module, data, max_drop="5%", threads=1)
    assert found.drop.amount <= 0.05
    assert found.size.macs < found.original.macs
    assert all(step.kept for step in found.steps[:-1])

    def never(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr("tersor.calibrated.fit", never)
    again = tersor.prune(module, data, max_drop="5%", threads=1)
    assert again.widths == found.widths
    assert again.model.digest() == found.model.digest()


def test_what_sensitivity_found_proposes_widths(module, data, tmp_path):
    found = tersor.sensitivity(module, data, granularities=["channels"], items=64, threads=1)
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found.to_json()))
    pruned = tersor.prune(module, data, macs="50%", sensitivity=file, threads=1)
    assert pruned.size.macs <= 0.5 * pruned.original.macs


def test_what_was_found_sensitive_stays_wide():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    data = [(torch.randn(400, 16),)]
    found = tersor.sensitivity(chain, data, metric="cosine", granularities=["channels"], items=64, threads=1)
    assert {place for place, _ in found.places("channels")} == {"0", "2"}
    widths = {}
    for place in ("0", "2"):
        points = [dataclasses.replace(p, seen=p.seen * (1e3 if p.place == place else 1)) for p in found.points]
        told = dataclasses.replace(found, points=tuple(points))
        pruned = tersor.prune(chain, data, macs="50%", metric="cosine", sensitivity=told, threads=1)
        widths[place] = dict(pruned.widths)
    assert widths["0"].get("0", (32,))[0] > widths["2"]["0"][0]
    assert widths["2"].get("2", (32,))[0] > widths["0"]["2"][0]


def test_sensitivity_of_another_model_is_refused(module, data):
    found = tersor.sensitivity(module, data, granularities=["bits"], items=64, threads=1)
    with pytest.raises(InputError, match=r"sensitivity has no channels, but this model can be pruned at"):
        tersor.prune(module, data, macs="50%", sensitivity=found, threads=1)


def test_an_excluded_layer_that_is_none_is_said(module, data):
    with pytest.raises(InputError, match=r"exclude names 'heads', which is not a layer .* similar names: head"):
        tersor.prune(module, data, weights="50%", exclude=["heads"], threads=1)


def test_what_is_excluded_stays(module, data):
    found = tersor.prune(module, data, weights="50%", exclude=["head"], threads=1)
    assert set(found.densities) == {"stem.0", "body.0"}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "not given how much to prune; give macs, weights, branches, a pattern such as 2:4, or max_drop"),
        ({"macs": 2}, r"'2' lies outside 0% to 100% \(did you mean 2x\?\)"),
        ({"macs": "half"}, "'half' is no number above zero; write 2x"),
        ({"weights": 0.5, "pattern": "stripes"}, "no pattern 'stripes'; write anywhere, rows, n:m"),
        (
            {"weights": 0.5, "pattern": "2:4"},
            "The pattern 2:4 itself determines how many weights stay; leave out weights",
        ),
        ({"weights": 0.5, "criterion": "luck"}, "no criterion 'luck'; choose one of activation, batch_norm"),
        ({"macs": 0.5, "schedule": "sudden"}, "no schedule 'sudden'; choose one of geometric, linear, cosine, cubic"),
        (
            {"macs": 0.5, "only": ["stripes"]},
            "no kind of prunable group 'stripes'; choose one of heads, residual, head_width",
        ),
        ({"weights": 0.5, "only": ["heads"]}, "only is heads, but it is not given how much to prune"),
        ({"macs": 0.5, "steps": 0}, "steps is 0; it must be at least 1"),
        ({"macs": 0.5, "multiple": "even"}, "multiple is 'even'; write a number from 1 up, or auto"),
        (
            {"weights": 0.5, "sensitivity": "found.json"},
            "sensitivity corrects the predicted loss of channels; it needs macs",
        ),
        ({"macs": 0.5, "criterion": "wanda", "sensitivity": "found.json"}, "needs macs, .* and criterion best"),
        ({"macs": 0.5, "multiple": 0}, "multiple is 0; write a number from 1 up, or auto"),
    ],
)
def test_contradictions_are_said_before_anything_is_loaded(wish, said):
    with pytest.raises(InputError, match=said):
        tersor.prune("nowhere.py:nothing", "nowhere.npz", **wish)


def test_what_cannot_be_reached_is_said(module, data):
    with pytest.raises(BudgetError, match="multiply-adds; the budget is"):
        tersor.prune(module, data, macs=1e-6, threads=1)
    with pytest.raises(BudgetError, match=r"No step is within the allowed drop of 0; the smallest drop was"):
        tersor.prune(module, data, weights=0.03, max_drop=0.0, threads=1)


def test_a_model_without_channels_to_remove_says_so(data):
    x = torch.randn(64, 8)
    with pytest.raises(InputError, match="No axis of this model can be pruned"):
        tersor.prune(nn.Linear(8, 3), [(x, torch.randint(0, 3, (64,)))], macs=0.5, threads=1)


def test_only_what_was_asked_for_is_narrowed(module, data):
    found = tersor.prune(module, data, macs="1.1x", only=["residual"], threads=1)
    assert set(found.widths) == {"stem.0"}
    with pytest.raises(InputError, match=r"no prunable axis of the requested kinds \(heads, neurons\), only residual"):
        tersor.prune(module, data, macs="1.1x", only=["heads", "neurons"], threads=1)


def test_widths_are_what_the_runtimes_reward(module, data, monkeypatch):
    seen = []

    def rewarded(targets, threads, scratch):
        seen.extend(targets)
        return 8

    monkeypatch.setattr("tersor.pruning.rewarded", rewarded)
    found = tersor.prune(module, data, macs="1.2x", multiple="auto", threads=1)
    assert {left % 8 for left, _ in found.widths.values()} == {0}
    assert {target_name(target) for target in seen} == {("onnxruntime", "fp32"), ("openvino", "fp32")}


def test_residual_branches_are_left_out(module, data):
    found = tersor.prune(module, data, branches=1, threads=1)
    assert found.dropped == ("body.0",)
    assert found.original.macs - found.size.macs == 16 * 16 * 9 * 64
    x = data[0][0]
    assert found.module(x).shape == module(x).shape
    with pytest.raises(BudgetError, match="has 1 residual branch that can be removed; 2 were requested"):
        tersor.prune(module, data, branches=2, threads=1)
    with pytest.raises(
        InputError, match="branches is 'auto' and macs is not given; write a number from 0 up, or auto together with"
    ):
        tersor.prune(module, data, branches="auto")
    with pytest.raises(InputError, match="branches is -1; write a number from 0 up"):
        tersor.prune(module, data, branches=-1)


def test_branches_and_channels_go_in_one_sweep(module, data):
    found = tersor.prune(module, data, branches=1, macs="4x", steps=2, threads=1, metric="agreement")
    assert found.dropped == ("body.0",)
    assert found.original.macs / found.size.macs >= 4
    assert all(name != "body.0" for name in found.widths)
    chosen = tersor.prune(module, data, branches="auto", macs="1.02x", threads=1, metric="agreement")
    plain = tersor.prune(module, data, macs="1.02x", threads=1, metric="agreement")
    assert chosen.drop.amount <= plain.drop.amount + 0.02


def test_a_recipe_can_leave_branches_out(module, data, tmp_path):
    recipe = Recipe(("onnxruntime", "fp32"), Decisions(drop=("body.0",)), 0, 100, 1)
    assert read_recipe(recipe.to_yaml()) == recipe
    asked = tmp_path / "plan.yaml"
    asked.write_text(recipe.to_yaml())
    report = tersor.compress(module, data, recipe=asked, max_drop="90%", out=tmp_path / "out")
    assert report.after.macs == report.before.macs - 16 * 16 * 9 * 64
    asked.write_text(recipe.to_yaml().replace("body.0", "body.7"))
    with pytest.raises(RecipeError, match=r"names the residual branch body\.7, which this model does not have"):
        tersor.compress(module, data, recipe=asked, max_drop="90%", out=tmp_path / "out")


def test_training_after_each_step_gives_back_what_was_lost(module, data, tmp_path):
    out = tmp_path / "small.pt2"
    found = tersor.prune(
        module, data, macs="8x", steps=2, recover="4epochs", threads=1, metric="cross_entropy", out=out
    )
    assert found.size.macs <= found.original.macs / 8
    for (
        course
    ) in found.trained:  # which channels go first is luck on so small a network; what a training gives back is not
        assert min(lost for _, lost in course.judged[1:]) < course.judged[0][1]
    assert [course.steps for course in found.trained] == [found.trained[0].steps] * 2
    assert all(course.losses for course in found.trained)
    x = data[0][0]
    again = torch.export.load(out).module(check_guards=False)
    torch.testing.assert_close(again(x), found.module(x))
    assert json.loads(json.dumps(found.to_json()))["trained"][0]["steps"] == found.trained[0].steps


def test_training_keeps_zeros_and_goes_on_after_a_kill(module, data, monkeypatch):
    how = tersor.Recovery.of("1epochs", optimiser="sgd", rate=0.02, batch=64, augment="crop,flip")
    found = tersor.prune(module, data, weights="20%", steps=2, recover=how, threads=1, metric="agreement")
    assert found.size.nonzero / found.size.weights == pytest.approx(0.2, abs=0.03)

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tersor.recovering.train", never)
    again = tersor.prune(module, data, weights="20%", steps=2, recover=how, threads=1, metric="agreement")
    assert again.model.digest() == found.model.digest()
    assert again.trained == found.trained


def test_norms_that_are_frozen_see_no_batch(module, data, monkeypatch):
    moving = []

    def look(student, *rest, **more):
        moving.append(student._moving)
        before = {name: t.clone() for name, t in student.buffers.items()}
        history = train(student, *rest, **more)
        assert all(torch.equal(t, before[name]) for name, t in student.buffers.items())
        return history

    monkeypatch.setattr("tersor.recovering.train", look)
    how = tersor.Recovery.of("1epochs", optimiser="sgd", rate=0.005, batch=32, norms="frozen")
    found = tersor.prune(module, data, macs="3x", recover=how, threads=1)
    assert moving == [False]
    assert found.trained[0].losses


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_other_optimisers_bring_a_pruned_network_back(module, data, optimiser):
    how = tersor.Recovery.of("3epochs", optimiser=optimiser, batch=64)
    found = tersor.prune(module, data, macs="3x", recover=how, threads=1)
    losses = [loss for _, loss in found.trained[0].losses]
    assert losses[-1] < losses[0]


def test_training_for_a_time_and_with_labels(module, data):
    how = tersor.Recovery.of("2s", loss="0.5*kl + 0.5*cross_entropy", batch=64)
    found = tersor.prune(module, data, macs="3x", recover=how, threads=1)
    assert found.trained[0].steps >= 1
    assert found.trained[0].losses
    how = tersor.Recovery.of("2s", batch=16, accumulate=4, workers=2)
    found = tersor.prune(module, data, macs="3x", recover=how, threads=1)
    assert found.trained[0].steps >= 1


def test_training_ends_where_enough_is_back(module, data):
    wish = {"macs": "3x", "threads": 1, "metric": "cosine"}
    whole = tersor.prune(module, data, recover=tersor.Recovery.of("4epochs", batch=64), **wish).trained[0]
    lost = [value for _, value in whole.judged]
    assert min(lost[1:]) < lost[0]
    for enough in (lost[0], max(value for value in lost[1:] if value < lost[0])):
        course = tersor.prune(
            module, data, recover=tersor.Recovery.of("4epochs", batch=64, enough=max(enough, 0.0)), **wish
        ).trained[0]
        assert course.judged[-1][1] <= enough
        assert all(value > enough for _, value in course.judged[:-1])
        assert course.steps <= whole.steps


def test_movement_prunes_what_training_shrinks(module, data):
    how = tersor.Recovery.of("1epochs", loss="cross_entropy", optimiser="sgd", rate=0.02, batch=64)
    found = tersor.prune(module, data, weights="30%", criterion="movement", recover=how, threads=1, metric="agreement")
    assert found.size.nonzero / found.size.weights == pytest.approx(0.3, abs=0.03)
    assert found.drop.amount < 0.3
    plain = tersor.prune(module, data, weights="30%", criterion="magnitude", recover=how, threads=1, metric="agreement")
    masks = [{n: t != 0 for n, t in each.model.tensors() if t.ndim > 1} for each in (found, plain)]
    assert any(not torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    again = tersor.prune(module, data, weights="30%", criterion="movement", recover=how, threads=1, metric="agreement")
    assert again.model.digest() == found.model.digest()
    how = tersor.Recovery.of("1epochs", loss="cross_entropy", optimiser="sgd", rate=0.02, batch=64, enough="50%")
    early = tersor.prune(module, data, weights="30%", criterion="movement", recover=how, threads=1, metric="agreement")
    assert all(torch.equal(t != 0, masks[0][n]) for n, t in early.model.tensors() if t.ndim > 1)


def test_a_lottery_ticket_trains_from_its_early_values(module, data):
    torch.manual_seed(0)
    early = stripes.Small().eval()
    how = tersor.Recovery.of("8epochs", loss="cross_entropy", optimiser="sgd", rate=0.05, batch=64)
    wish = {"weights": "40%", "steps": 2, "criterion": "magnitude", "recover": how, "threads": 1}
    found = tersor.prune(module, data, rewind=early, **wish)
    assert found.size.nonzero / found.size.weights == pytest.approx(0.4, abs=0.03)
    assert all(course.losses[0][1] > 0.8 for course in found.trained)  # it begins as the early network did
    assert all(course.losses[-1][1] < 0.4 for course in found.trained)


def test_rewinding_puts_early_values_where_weights_are_left(module, data):
    x = data[0][0]
    torch.manual_seed(0)
    late, early = (fold_norms(capture(each, (x,))) for each in (module, stripes.Small().eval()))
    fitted = fit(late, [(x,)], measure(late, [(x,)]), Decisions(techniques={"body.0": Sparse(Anywhere(0.3))}))
    back = rewound(fitted, early)
    mask = fitted.weights["body.0.weight"].dense() != 0
    assert torch.equal(back.model.tensor("body.0.weight"), early.tensor("body.0.weight") * mask)
    assert torch.equal(back.model.tensor("stem.0.weight"), early.tensor("stem.0.weight"))
    assert torch.equal(back.model.tensor("body.0.bias"), early.tensor("body.0.bias"))


def test_a_ticket_of_a_network_without_biases_trains_in_several_rounds(data):
    def bare() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()

    torch.manual_seed(0)
    module, early = bare(), bare()
    wish = {"weights": "40%", "steps": 2, "criterion": "magnitude", "recover": "1epochs", "metric": "agreement"}
    found = tersor.prune(module, data, rewind=early, threads=1, **wish)
    assert len(found.trained) == 2


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            {"criterion": "movement"},
            "The criterion movement needs a training, but recover is not given; give recover",
        ),
        ({"rewind": nn.Linear(3, 2)}, "rewind needs a training, but recover is not given; give recover"),
        ({"rewind": nn.Conv2d(1, 4, 8), "recover": "1epochs"}, "rewind is a different network: it differs from the"),
    ],
)
def test_what_a_training_needs_is_said(module, data, wish, said):
    with pytest.raises(InputError) as caught:
        tersor.prune(module, data, weights="50%", threads=1, **wish)
    assert said in str(caught.value)


def test_a_network_without_norms_gets_biases_and_they_are_kept(data):
    torch.manual_seed(0)
    bare = nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 4),
    )
    wish = {"macs": "2x", "recover": "1epochs", "threads": 1, "metric": "agreement"}
    found, again = (tersor.prune(bare.eval(), data, **wish) for _ in range(2))  # trained, and out of the cache
    assert again.model.digest() == found.model.digest()
    assert any(name.endswith("bias") for name, _ in found.model.tensors())
    x = data[0][0]
    torch.testing.assert_close(again.module(x), found.module(x))
