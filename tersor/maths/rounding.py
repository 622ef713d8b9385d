"""Choosing among roundings of one matrix by the true quadratic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from tersor.maths.damage import by_row
from tersor.maths.gptq import DAMPINGS, conditional_variances, factor, feedback, polish
from tersor.maths.grid import C, Kind, PerTensor, absmax, search

FLOOR = 1e-3
WIDE = 2048  # columns from which on a factor takes seconds: one damping, one grid, float32


@dataclass(frozen=True)
class Rounded(Generic[C]):
    """`codes` (groups, rows, c) on `grid`, whose rows are those of all groups, stacked; `cost`: what they lose, where that is
    known (`best`)."""

    codes: Tensor
    grid: C
    cost: Tensor | None = None

    def values(self) -> Tensor:
        return self.grid.values(self.codes.flatten(0, 1)).reshape(self.codes.shape)


def nearest(target: Tensor, gram: Tensor, fisher: Tensor, kind: Kind[C]) -> Rounded[C]:
    """Round to nearest: the better of the absmax grid and the one searched with importance `g_i H_jj`.

    target: (groups, rows, c); gram: (groups, c, c); fisher: (groups * rows,). The choice is made for each row, for the
    whole matrix where all rows share the scale.
    """
    rows = target.flatten(0, 1)
    naive, searched = absmax(rows, kind), search(rows, _importance(target, _diagonal(gram), fisher), kind)
    candidates = (Rounded(grid.codes(rows).reshape(target.shape), grid) for grid in (naive, searched))
    return best(candidates, target, gram, fisher, kind)


def fed_back(target: Tensor, gram: Tensor, fisher: Tensor, kind: Kind[C]) -> Rounded[C]:
    """GPTQ: the best of rounding and of error feedback at several dampings and grids, then coordinate descent.

    Coarse grids are worth more effort: a second grid, searched with the conditional variances `R_jj^2` (what an
    error costs after feedback), more dampings and a second sweep; wide matrices take one of each. Shapes as in `nearest`;
    never worse than it.
    """
    wide = target.shape[2] >= WIDE
    if wide:
        target, gram = target.float(), gram.float()
    start = nearest(target, gram, fisher, kind)
    grids = (start.grid,) if kind.fine or wide else (start.grid, _second(target, gram, fisher, kind))
    dampings = (1e-2,) if wide else DAMPINGS[::2] if kind.fine else DAMPINGS

    def candidates() -> Iterator[Rounded[C]]:
        yield start
        for damping in dampings:
            order, r = factor(gram, damping)
            for grid in grids:
                yield Rounded(feedback(target, order, r, grid.points(target)), grid)

    chosen = best(candidates(), target, gram, fisher, kind)
    codes = polish(chosen.codes, target, gram, chosen.grid.points(target), sweeps=1 if kind.fine or wide else 2)
    return best(iter((chosen, Rounded(codes, chosen.grid))), target, gram, fisher, kind)


def _second(target: Tensor, gram: Tensor, fisher: Tensor, kind: Kind[C]) -> C:
    variances = conditional_variances(gram).nan_to_num(0.0)
    return search(target.flatten(0, 1), _importance(target, variances, fisher), kind)


def best(candidates: Iterator[Rounded[C]], target: Tensor, gram: Tensor, fisher: Tensor, kind: Kind[C]) -> Rounded[C]:
    """The candidate of least damage, row by row, or as a whole where all rows share the scale; the first of equals."""
    chosen = next(candidates)
    least = _cost(chosen, target, gram, fisher, kind)
    for other in candidates:
        cost = _cost(other, target, gram, fisher, kind)
        better = cost < least
        codes = torch.where(better.reshape(-1, 1), other.codes.flatten(0, 1), chosen.codes.flatten(0, 1))
        least = torch.where(better, cost, least)
        chosen = Rounded(codes.reshape(target.shape), chosen.grid.where(better.reshape(-1, 1), other.grid), least)
    return replace(chosen, cost=least)


def _cost(rounded: Rounded[C], target: Tensor, gram: Tensor, fisher: Tensor, kind: Kind[C]) -> Tensor:
    if rounded.cost is not None:
        return rounded.cost
    cost = by_row((rounded.values() - target).to(gram.dtype), gram).flatten()
    return (cost * fisher).sum().reshape(1) if isinstance(kind.granularity, PerTensor) else cost


def _importance(target: Tensor, columns: Tensor, fisher: Tensor) -> Tensor:
    # The floor keeps inputs and outputs that the data never woke from being clipped for nothing.
    g = (fisher + FLOOR * fisher.mean()).reshape(target.shape[:2])
    spread = columns + FLOOR * columns.mean(1, keepdim=True)
    return (g[:, :, None] * spread[:, None, :]).flatten(0, 1)


def _diagonal(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2).clamp_min(0)
