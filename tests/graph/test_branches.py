"""Residual branches: leaving one out is the same as making its last matrix zero, and nothing else counts as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO, batch, captured

from tersor.graph.branches import branches, without
from tersor.graph.model import Model, capture
from tersor.site import matrices

RESIDUAL = [name for name in ZOO if branches(captured(name))]


def zeroed(model: Model, names: list[str]) -> Model:
    model = model.copy()
    for matrix in matrices(model):
        if matrix.name in names:
            for tensor in (matrix.weight, matrix.bias):
                if tensor is not None:
                    model.assign(tensor, torch.zeros_like(model.tensor(tensor)))
    return model


def test_the_zoo_has_networks_with_branches():
    assert len(RESIDUAL) >= 5


@pytest.mark.parametrize("name", RESIDUAL)
def test_leaving_out_is_zeroing(name):
    model = captured(name)
    found = [branch.name for branch in branches(model)]
    every = [found, *([one] for one in found)]
    for names in every:
        small, zero = without(model, names), zeroed(model, names)
        for size in (2, 3):
            x = batch(model, size)
            for a, b in zip(small.run(*x), zero.run(*x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        left = {m.name for m in matrices(small)}
        gone = {m for branch in branches(model) if branch.name in names for m in branch.matrices}
        assert gone
        assert left == {m.name for m in matrices(model)} - gone
        assert capture(small.module, small.example)  # it can be exported again


class Crossed(nn.Module):
    """Additions that are no residual branches: of a part that is read elsewhere, of a tied weight, of a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read_twice, self.tied = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.place = nn.Parameter(torch.randn(1, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.place
        y = self.read_twice(x)
        x = x + y
        x = x * y
        x = x + self.tied(x)
        return self.last(F.relu(x + self.tied(x)))


def test_what_is_no_branch():
    torch.manual_seed(0)
    assert branches(capture(Crossed().eval(), (torch.randn(2, 6),))) == ()
