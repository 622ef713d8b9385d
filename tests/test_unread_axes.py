"""Axes that no matrix reads: queries and keys, which only meet each other, and what a softmax chooses among."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError
from tersor.graph.likelihood import divergence
from tersor.graph.model import capture
from tersor.profile import measure
from tersor.site import groups
from tersor.widths import curves
from tersor.windows import narrowing


class Scores(nn.Module):
    """Attention of one head over positions; queries and keys meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(8, 12), nn.Linear(8, 12)
        self.v, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.q, self.k):
                layer.weight *= 3
            self.q.weight[::3] *= 0.03  # four of twelve say next to nothing
            self.q.bias[::3] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = (self.q(x) @ self.k(x).transpose(1, 2) / 3).softmax(-1) @ self.v(x)
        return self.head(y.mean(1))


class Mixture(nn.Module):
    """A matrix for each item, mixed of four by a softmax; the third is hardly ever chosen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrices = nn.Parameter(torch.randn(4, 6, 8))
        self.choose = nn.Linear(8, 4)
        with torch.no_grad():
            self.choose.bias[2] = -12

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.choose(x).softmax(-1) @ self.matrices.flatten(1)).view(-1, 6, 8)
        return (mixed @ x[:, :, None])[..., 0]


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        normed, mean, _ = torch.native_layer_norm(self.first(x), [6], None, None, 1e-5)
        return self.last(normed) + mean


def test_what_only_meets_in_a_product_has_a_price() -> None:
    net = Scores().eval()
    model = capture(net, (torch.randn(2, 5, 8),))
    batches = [(torch.randn(256, 5, 8),)]
    profile = measure(model, batches)
    (group,) = (g for g in groups(model) if g.name == "q")
    found = curves(model, profile, [group])["q"]
    assert set(found.order[:4]) == {0, 3, 6, 9}
    keep = {"q": found.kept(group.blocks - 5)}
    seen = divergence(model.run(*batches[0]), narrowing(model, profile)(keep).run(*batches[0]), batches[0]) / 256
    assert seen / 4 < found.damage[5] < 4 * seen


def test_queries_and_keys_are_cut_together() -> None:
    data = list(torch.randn(320, 5, 8).split(32))
    pruned = tersor.prune((Scores().eval(), data[0][:2]), data, macs="1.3x", metric="agreement", threads=1)
    shapes = {name: tuple(t.shape) for name, t in pruned.model.tensors()}
    assert shapes["q.weight"] == shapes["k.weight"]
    assert shapes["q.weight"][0] <= 8
    assert pruned.after > 0.9


def test_what_a_softmax_chooses_among_is_tried() -> None:
    net, data = Mixture().eval(), list(torch.randn(320, 8).split(32))
    pruned = tersor.prune((net, data[0][:2]), data, macs="1.2x", metric="cosine", threads=1)
    shapes = {name: tuple(t.shape) for name, t in pruned.model.tensors()}
    assert shapes["choose.weight"] == (3, 8)
    assert sorted(shapes["matrices"]) == [3, 48]
    torch.testing.assert_close(pruned.model.run(data[0])[0], net(data[0]), atol=1e-3, rtol=1e-3)


def test_what_a_norm_counts_is_said_to_stay() -> None:
    example = torch.randn(2, 8)
    (axis,) = (a for a in tersor.inspect((Asks().eval(), example)).axes if a.name == "first")
    assert not axis.budgeted
    assert axis.normalised == ("native_layer_norm",)
    with pytest.raises(InputError, match="the width of 'first' matters to native_layer_norm"):
        tersor.prune(
            (Asks().eval(), example), list(torch.randn(64, 8).split(32)), macs="1.2x", metric="cosine", threads=1
        )
