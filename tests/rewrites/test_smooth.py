"""Scale moved before grids: the same function, tighter grids, and nothing else in the way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from laws_rewrite import RewriteLaws
from torch import Tensor, nn

import tersor
from tersor.calibrated import prepared, smoothed
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.profile import measure
from tersor.rewrites.shrink import shrink
from tersor.rewrites.smooth import scales, smooth
from tersor.site import Site, groups, matrices, sites
from tersor.target import Grid
from tersor.techniques.gptq import GPTQ


class Block(nn.Module):
    """A feed-forward block whose norm makes some channels loud; `post`: the sum reads the norm's output too."""

    def __init__(self, post: bool):
        super().__init__()
        self.enter, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)
        self.post = post
        loud = torch.ones(32)
        loud[[3, 17]] = 64
        self.norm.weight.data *= loud
        self.norm.bias.data += 0.1 * loud * torch.randn(32)
        self.up.weight.data /= loud

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        y = self.norm(h)
        z = self.down(F.gelu(self.up(y)))
        return self.head(torch.tanh((y / 64 if self.post else h) + z))


def _made(post: bool) -> tuple[Model, list[tuple[Tensor]]]:
    torch.manual_seed(0)
    model = capture(Block(post).eval(), (torch.randn(2, 6, 12),))
    return model, [(x,) for x in torch.randn(256, 6, 12, generator=torch.Generator().manual_seed(1)).split(64)]


class TestSmooth(RewriteLaws):
    changes = ("vision_transformer", "llama")

    def rewrite(self, model: Model) -> Model:
        random = torch.Generator().manual_seed(3)
        chosen = {
            site.activation: torch.exp2(torch.randint(-3, 4, (site.matrices[0].shape[1],), generator=random).float())
            for site in sites(model)
            if all(m.convolution is None for m in site.matrices) and _own(model, site)
        }
        return smooth(model, chosen)[0]


def _own(model: Model, site: Site) -> bool:
    """Whether what reads an activation are matrices that nothing else has."""
    pointers = [model.tensor(m.weight).data_ptr() for m in matrices(model)]
    nodes = {node.name: node for node in model.graph.nodes}
    names = [str(n.target) for n in model.graph.nodes if n.op == "get_attr" for _ in n.users]
    alone = all(
        pointers.count(model.tensor(m.weight).data_ptr()) == 1 and names.count(m.weight) == 1 for m in site.matrices
    )
    return alone and nodes[site.activation].op == "call_function"


@pytest.mark.parametrize("post", [False, True])
def test_the_function_is_the_same_and_facts_follow(post: bool) -> None:
    model, batches = _made(post)
    found = scales(model, batches)
    assert "layer_norm" in found
    assert torch.equal(found["layer_norm"].log2(), found["layer_norm"].log2().round())
    assert found["layer_norm"][3] > 4 * found["layer_norm"].median()
    needs = frozenset({"gram", "fisher"})
    other, facts = smooth(model, found, measure(model, batches, needs).facts)
    torch.testing.assert_close(other.run(*batches[0])[0], model.run(*batches[0])[0], rtol=1e-5, atol=1e-6)
    for name, seen in measure(other, batches, needs).facts.items():
        scale = float(seen.gram.abs().max())
        torch.testing.assert_close(facts[name].gram, seen.gram, rtol=1e-3, atol=1e-5 * scale)
        torch.testing.assert_close(facts[name].activity, seen.activity, rtol=1e-3, atol=1e-5)
    products = [node.name for node in other.graph.nodes if "smoothing" in node.name]
    assert ("layer_norm_smoothing" in products) == post  # else the norm took it
    assert torch.equal(other.tensor("norm.weight"), model.tensor("norm.weight")) == post


def _lost(model: Model, batches: list[tuple[Tensor]], decisions: Decisions, divide: bool) -> float:
    """Squared error of the outputs, what matrices read being rounded."""
    known, profile = prepared(model, batches)
    if divide:
        known, profile = smoothed(known, profile, batches, decisions)
    made = fit(known, batches, profile, decisions)
    reads = {site.activation for site in sites(made.model)}

    def visit(node, value):
        grid = made.feeds.get(node.name)
        return grid.round(value) if isinstance(grid, Grid) and node.name in reads else value

    x = torch.randn(64, 6, 12, generator=torch.Generator().manual_seed(2))
    return float((made.model.interpret((x,), visit)[0] - model.run(x)[0]).square().mean())


@pytest.mark.parametrize("post", [False, True])
def test_static_int8_loses_much_less_where_channels_are_loud(post: bool) -> None:
    model, batches = _made(post)
    decisions = Decisions(techniques={m.name: GPTQ() for m in matrices(model)}, feeds="static")
    assert _lost(model, batches, decisions, True) < 0.3 * _lost(model, batches, decisions, False)


@pytest.mark.parametrize("post", [False, True])
def test_groups_are_called_as_before_and_can_be_cut(post: bool) -> None:
    model, batches = _made(post)
    other, _ = smooth(model, scales(model, batches))
    assert [(g.name, g.blocks, g.kind, g.refused) for g in groups(other)] == [
        (g.name, g.blocks, g.kind, g.refused) for g in groups(model)
    ]
    for group in groups(model):
        if group.refused is None and not group.counted:
            keep = {group.name: tuple(range(0, group.blocks, 2))}
            wanted, got = (shrink(m, keep).run(*batches[0])[0] for m in (model, other))
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_codes_that_kernels_hand_on_are_left_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU()
    )
    module.append(nn.Linear(6, 4))
    module[4].weight.data[:, 2] /= 100
    module[0].weight.data[2] *= 100
    model = capture(module.eval(), (torch.randn(2, 3, 8, 8),))
    assert scales(model, [(torch.randn(64, 3, 8, 8),)]) == {}


def test_a_weight_that_is_read_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(post=False)

        def forward(self, x):
            h = self.block.enter(x)
            return self.block.up(self.block.norm(h)) + self.block.up(torch.tanh(h))

    torch.manual_seed(0)
    model = capture(Twice().eval(), (torch.randn(2, 6, 12),))
    assert scales(model, [(torch.randn(64, 6, 12),)]) == {}


def test_without_scales_nothing_is_copied() -> None:
    model, _ = _made(False)
    assert smooth(model, {})[0] is model


@pytest.mark.parametrize("weights", ["bf16", "1", "nf4"])
def test_weights_of_any_format_are_taken(weights: str) -> None:
    torch.manual_seed(0)
    data = [x for (x,) in _made(True)[1]]
    found = tersor.quantize(Pooled().eval(), data, weights=weights, activations=8, metric="agreement", threads=1)
    assert any("smoothing" in node.name for node in found.model.graph.nodes)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(post=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)[:, 0]
