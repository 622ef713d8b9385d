"""Densities across layers: brute force, budgets, refusals."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from tersor.densities import Curve, allocate, curves
from tersor.errors import BudgetError
from tersor.graph.model import capture
from tersor.profile import measure

TABLE = {
    "first": Curve(100, (0.1, 0.5, 1.0), (4.0, 1.0, 0.0)),
    "second": Curve(400, (0.1, 0.5, 1.0), (2.0, 0.1, 0.0)),
    "third": Curve(50, (0.1, 0.5, 1.0), (9.0, 2.0, 0.0)),
}


def spent(densities: dict[str, float]) -> float:
    return sum(TABLE[name].size * density for name, density in densities.items())


def lost(densities: dict[str, float]) -> float:
    return sum(float(TABLE[name].at(density)) for name, density in densities.items())


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.9, 1.0])
def test_inside_the_budget_and_as_good_as_brute_force(share: float):
    found = allocate(TABLE, share)
    assert spent(found) <= share * 550 + 1e-9
    grid = [i / 40 for i in range(4, 41)]
    every = (dict(zip(TABLE, d, strict=True)) for d in product(grid, repeat=3))
    best = min(lost(d) for d in every if spent(d) <= share * 550 - 4)  # less about a step of each
    assert lost(found) <= best + 1e-9


def test_what_hurts_most_stays_densest():
    found = allocate(TABLE, 0.4)
    assert found["third"] > found["first"] > found["second"]


def test_too_little_is_refused():
    with pytest.raises(BudgetError, match=r"leave 55 weights; the share 0.05 is 28"):
        allocate(TABLE, 0.05)


def test_curves_fall_to_zero():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(64, 2, 6, 6)
    model = capture(module, (x[:2],))
    found = curves(model, measure(model, [(x,)]), densities=(0.1, 0.3, 0.6))
    assert {name: curve.size for name, curve in found.items()} == {"0": 72, "3": 192}
    for curve in found.values():
        assert curve.densities == (0.1, 0.3, 0.6, 1.0)
        assert sorted(curve.damage, reverse=True) == list(curve.damage)
        assert curve.damage[-1] == 0 < curve.damage[0]
