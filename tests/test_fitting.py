"""The fit stage: drifted inputs, the residual stream, shrunk forms, shared weights, feeds."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.errors import BudgetError, DataError
from tersor.fitting import Decisions, fit
from tersor.graph.likelihood import divergence
from tersor.graph.lockstep import Lockstep
from tersor.graph.macs import macs
from tersor.graph.model import capture
from tersor.profile import measure
from tersor.quantising import quantize
from tersor.rewrites.shrink import mask, shrink
from tersor.shelf import Shelf
from tersor.site import groups, matrices
from tersor.techniques.columns import Columns
from tersor.techniques.gptq import GPTQ
from tersor.widths import allocate, curves
from tersor.windows import windows


class Residual(nn.Module):
    def __init__(self, width=8, inner=12):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.narrow = nn.ModuleList(nn.Conv2d(width, inner, 3, padding=1) for _ in range(3))
        self.wide = nn.ModuleList(nn.Conv2d(inner, width, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            x = F.relu(x + wide(F.relu(narrow(x))))
        return self.head(x.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        return self.head(F.relu(self.up(F.relu(self.point(x)))).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.back(F.relu(self.mix(x))))


def images(count=160, seed=1):
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1) * 3  # neighbours are correlated, as in pictures


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    model = capture(Residual().eval(), (torch.randn(2, 3, 8, 8),))
    batches = [(x,) for x in images().split(50)]
    return model, batches, measure(model, batches)


@pytest.fixture(scope="module")
def inner(residual):
    model, _, profile = residual
    found = [g for g in groups(model) if g.name.startswith("narrow")]
    swept = curves(model, profile, found)
    return found, swept, allocate(model, swept, found, 0.6 * sum(macs(model).values()))


def apart(original, other, x):
    return divergence(original.run(x), other.run(x), (x,)) / len(x)


def test_fit_beats_zeroing_on_new_items(residual, inner):
    model, batches, profile = residual
    keep, x = inner[2], images(seed=9)
    small = fit(model, batches, profile, Decisions(keep))
    assert apart(model, small.model, x) < 0.3 * apart(model, mask(model, keep), x)
    assert sum(macs(small.model).values()) <= 0.6 * sum(macs(model).values())
    assert not small.weights
    assert not small.feeds


def test_each_repair_is_needed(residual, inner, monkeypatch):
    """Against refitting each matrix to its own quadratic only, as if nothing before it had changed."""
    model, batches, profile = residual
    keep, x = inner[2], images(seed=9)
    local = mask(model, keep)
    cut = windows(model, keep)
    for matrix in matrices(model):
        window = cut[matrix.name]
        if window.cuts_columns:
            facts = profile.facts[matrix.name]
            columns = window.columns[0].tolist()
            v = Columns().fit(matrix, model.tensor(matrix.weight), facts, columns).dense()
            local.assign(matrix.weight, v)
    assert apart(model, fit(model, batches, profile, Decisions(keep)).model, x) < apart(model, local, x)


def test_same_seed_same_model_and_nothing_given_is_changed(residual, inner):
    model, batches, profile = residual
    before = {name: t.clone() for name, t in model.tensors()}
    one, two = (fit(model, batches, profile, Decisions(inner[2]), seed=3).model for _ in range(2))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.tensors(), two.tensors(), strict=True))
    assert all(torch.equal(before[name], t) for name, t in model.tensors())


def test_nothing_decided_is_the_same_model(residual):
    model, batches, profile = residual
    x = images(seed=9)
    torch.testing.assert_close(fit(model, batches, profile, Decisions()).model.run(x), model.run(x))


def test_quantised_weights_have_the_shrunk_shapes_and_the_models_values(residual, inner):
    model, batches, profile = residual
    techniques = {m.name: GPTQ(bits=8) for m in matrices(model)}
    heard = []
    small = fit(
        model, batches, profile, Decisions(inner[2], techniques, "static"), progress=lambda a, b: heard.append((a, b))
    )
    assert small.weights.keys() == {m.weight for m in matrices(model)}
    for name, weight in small.weights.items():
        assert torch.equal(weight.dense(), small.model.tensor(name))
    assert small.model.tensor("narrow.0.weight").shape[0] == len(inner[2]["narrow.0"])
    assert heard == [(i + 1, 16) for i in range(16)]
    x = images(seed=9)
    plain = fit(model, batches, profile, Decisions(inner[2]))
    assert apart(model, small.model, x) < 1.5 * apart(model, plain.model, x) + 1e-3


def test_feeds_cover_every_float_activation(residual):
    model, batches, profile = residual
    small = fit(model, batches, profile, Decisions(feeds="static"))
    nodes = {n.name for n in small.model.graph.nodes}
    assert set(small.feeds) <= nodes
    assert set(small.model.inputs) <= set(small.feeds)
    *inner, last = (m.node for m in matrices(small.model))
    assert set(inner) <= set(small.feeds)
    assert last not in small.feeds  # what leaves the network stays float
    assert all(grid.scale > 0 and 0 <= grid.zero <= 255 for grid in small.feeds.values())


def test_depthwise_transposed_and_missing_bias():
    torch.manual_seed(1)
    model = capture(Separable().eval(), (torch.randn(2, 3, 8, 8),))
    batches = [(images(96),)]
    profile = measure(model, batches)
    found = [g for g in groups(model) if g.refused is None]
    swept = curves(model, profile, found)
    keep = {name: curve.kept(curve.order.__len__() * 3 // 4) for name, curve in swept.items()}
    techniques = {m.name: GPTQ(bits=8) for m in matrices(model)}
    x = images(seed=9)
    for decisions in (Decisions(keep), Decisions(keep, techniques)):
        small = fit(model, batches, profile, decisions)
        assert small.model.tensor("depthwise.weight").shape[0] == len(keep["stem"])
        assert apart(model, small.model, x) < apart(model, mask(model, keep), x)


def test_windows_are_what_shrink_leaves():
    torch.manual_seed(1)
    model = capture(Separable().eval(), (torch.randn(2, 3, 8, 8),))
    keep = {g.name: tuple(range(0, g.blocks, 2)) for g in groups(model) if g.refused is None}
    small = shrink(model, keep)
    found = windows(model, keep)
    for matrix in matrices(small):
        assert found[matrix.name].shape == matrix.shape
        assert len(found[matrix.name].group) == matrix.groups


def test_tied_weights_stay_tied():
    torch.manual_seed(2)
    ids = torch.randint(0, 11, (64, 7))
    model = capture(Tied().eval(), (ids[:2],))
    profile = measure(model, [(ids,)])
    found = [g for g in groups(model) if g.name == "mix"]
    keep = {"mix": curves(model, profile, found)["mix"].kept(10)}
    small = fit(model, [(ids,)], profile, Decisions(keep, {"head": GPTQ(bits=8)}))
    assert torch.equal(small.model.tensor("head.weight"), small.model.tensor("embed.weight"))
    assert torch.equal(small.model.tensor("head.weight"), small.weights["head.weight"].dense())
    assert small.model.tensor("mix.weight").shape == (10, 8)


def test_lockstep_shares_values_until_something_changes_and_absorbs_the_drift(residual):
    model, batches, _ = residual
    now = model.copy()
    seen = {}
    for here in Lockstep(model, now, batches, frozenset(m.node for m in matrices(model))):
        seen[here.node.name] = (here.drifted, here.absorbs, here.joins)
        if len(seen) == 2:
            now.assign("narrow.0.weight", 0.5 * model.tensor("narrow.0.weight"))
    names = [m.node for m in matrices(model)]
    assert seen[names[1]] == (False, False, False)
    assert seen[names[2]] == (True, False, True)  # its input changed, the shortcut has not yet
    assert seen[names[4]] == (True, True, True)
    assert seen[names[-1]] == (True, False, False)


def test_lockstep_outputs_are_those_of_the_two_models(residual, inner):
    model, batches, _ = residual
    now = mask(model, inner[2])
    steps = Lockstep(model, now, batches, frozenset())
    assert list(steps) == []
    for i, (x,) in enumerate(batches):
        torch.testing.assert_close(torch.as_tensor(steps.outputs[1][i][0]), now.run(x)[0])


def test_allocation_meets_the_budget_and_an_impossible_one_says_by_how_much(residual, inner):
    model, _, _ = residual
    found, swept, keep = inner
    total = sum(macs(model).values())
    assert 0.5 * total < sum(macs(shrink(model, keep)).values()) <= 0.6 * total
    tighter = allocate(model, swept, found, 0.4 * total)
    assert all(len(tighter[name]) <= len(keep[name]) for name in keep)
    with pytest.raises(BudgetError, match=r"Even one block per group leaves .* the budget is 1\."):
        allocate(model, swept, found, 1.0)


def test_memory_limits_the_items_not_the_answer(residual, inner):
    model, batches, profile = residual
    small = fit(model, batches, profile, Decisions(inner[2]), memory=600_000)
    x = images(seed=9)
    assert apart(model, small.model, x) < apart(model, mask(model, inner[2]), x)


def test_bad_calibration_data_is_refused(residual, inner):
    model, _, profile = residual
    with pytest.raises(DataError, match="empty"):
        fit(model, [], profile, Decisions(inner[2]))


@pytest.mark.realdata
@pytest.mark.slow
def test_resnet20_keeps_its_accuracy_at_three_quarters_of_the_arithmetic(loaders):
    from tersor.rewrites.fold_norms import fold_norms

    found, labels = loaders.cifar10("train")
    x, held = loaders.cifar_norm(found[:256]), loaders.cifar_norm(found[40000:40500])
    model = fold_norms(capture(loaders.resnet_cifar(20), (x[:2],)))
    batches = [(x,)]
    profile = measure(model, batches)
    found = [g for g in groups(model) if g.name.endswith(".conv1")]
    keep = allocate(model, curves(model, profile, found), found, 0.75 * sum(macs(model).values()))
    small = fit(model, batches, profile, Decisions(keep)).model
    assert (small.run(held)[0].argmax(1) == torch.from_numpy(labels[40000:40500])).float().mean() > 0.9


class Encoder(nn.Module):
    """The values of its attention lie in memory in another order than their axes are in."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True) for _ in range(2)))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("net", "inputs", "keep"),
    [(Residual, (32, 3, 8, 8), {"narrow.0": tuple(range(6))}), (Encoder, (32, 12, 16), {})],
)
def test_what_is_on_disk_is_fitted_to_alike(net, inputs, keep, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, batches = capture(net().eval(), (torch.randn(2, *inputs[1:]),)), [(torch.randn(inputs),)]
    profile = measure(model, batches)
    decisions = Decisions(keep=keep, techniques={m.name: GPTQ(bits=4) for m in matrices(model)})
    near = dict(fit(model, batches, profile, decisions).model.tensors())
    monkeypatch.setattr("tersor.graph.lockstep.RESIDENT", 1 << 14)
    monkeypatch.setattr("tersor.shelf._LEAST", 1 << 10)
    shelves: list[Shelf] = []

    class Seen(Shelf):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shelves.append(self)
            self.most = 0

        def __setitem__(self, name, value):
            super().__setitem__(name, value)
            self.most = max(self.most, self.held if self.on_disk else 0)

    monkeypatch.setattr("tersor.graph.lockstep.Shelf", Seen)
    far = dict(fit(model, batches, profile, decisions).model.tensors())
    assert all(torch.equal(near[name], far[name]) for name in near)
    assert 0 < max(shelf.most for shelf in shelves) < 1 << 18  # beside small values
    gc.collect()
    assert not any(len(shelf) for shelf in shelves)  # all that nobody reads any more is gone


def test_a_transposed_convolution_with_output_padding_is_fitted_to_what_it_reads():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv1d(6, 3, 1),
    ).eval()
    found = quantize(
        (net, torch.randn(2, 4, 8)), list(torch.randn(60, 4, 8).split(20)), weights=8, metric="cosine", threads=1
    )
    assert found.after > 0.9999
