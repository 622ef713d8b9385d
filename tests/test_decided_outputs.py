"""Pruning of models that put out decisions, or that are saturated: no gradient is not taken for no loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor import DataError, DataWarning, prune, sensitivity


class Net(nn.Module):
    def __init__(self, out: Callable[[Tensor], object]):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        self.out = out

    def forward(self, x: Tensor) -> object:
        return self.out(self.body(x))


def brought(out: Callable[[Tensor], object]) -> tuple[tuple[nn.Module, Tensor], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = Net(out).eval()
    items = torch.randn(128, 12, generator=torch.Generator().manual_seed(1))
    return (net, items[:2]), [(part, net(part)) for part in items.split(32)]


def same(predict, batches) -> float:
    return float(np.mean(np.concatenate([(predict(*b.arrays()) == b.labels.numpy()).ravel() for b in batches])))


@pytest.mark.parametrize("out", [lambda y: y.argmax(1), lambda y: y > 0], ids=["class", "flags"])
def test_a_decision_is_pruned_by_the_numbers_before_it(out: Callable[[Tensor], Tensor]):
    model, data = brought(out)
    found = prune(model, data, macs="2x", metric=same)
    assert 0.4 < found.size.macs / found.original.macs <= 0.5
    assert isinstance(found.after, float)
    assert found.after > 0.7


def test_weights_before_a_decision_go_by_what_they_are_worth():
    model, data = brought(lambda y: y.argmax(1))
    by_weight = prune(model, data, weights=0.5, criterion="magnitude", metric=same)
    assert 0.45 < by_weight.size.nonzero / by_weight.original.weights <= 0.51
    assert isinstance(by_weight.after, float)
    assert by_weight.after > 0.7


def test_sensitivity_sees_how_far_the_numbers_before_a_decision_move():
    model, data = brought(lambda y: y.argmax(1))
    found = sensitivity(model, data, metric=same, granularities=("channels",))
    assert all(point.damage > 0 and point.seen > 0 for point in found.points)


def test_where_all_is_saturated_nothing_is_cut():
    model, data = brought(lambda y: (y * 1e9).clamp(0, 1))
    for asked in ({"macs": 0.5}, {"weights": 0.5}):
        with pytest.raises(
            DataError, match=r"no gradient reaches 'body.0', 'body.2', 'body.4', and yet .* is saturated"
        ):
            prune(model, data, metric="cosine", **asked)


def test_where_a_part_is_saturated_that_part_stays():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
            self.body = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * (self.gate(x) * 1e9).clamp(0, 1)

    torch.manual_seed(0)
    x = torch.randn(128, 12)
    with pytest.warns(DataWarning, match=r"no gradient reaches 'gate.0', 'gate.2', and yet .* nothing there is pruned"):
        found = prune((Gated().eval(), x[:2]), list(x.split(32)), macs=0.7, metric="cosine")
    assert found.widths.keys() == {"body.0"}
