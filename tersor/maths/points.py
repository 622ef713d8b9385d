"""For every weight of a matrix, the values that it may take: what rounding with error feedback asks of a grid.

Scales are (groups, runs, rows): a run of consecutive columns of a row shares one, and those of a column lie side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Points(ABC):
    """scale: (groups, runs, rows); run: columns of one run."""

    scale: Tensor
    run: int

    @abstractmethod
    def nearest(self, wanted: Tensor, column: Tensor | int) -> tuple[Tensor, Tensor]:
        """Codes and values (groups, rows) nearest to what is `wanted` in a column, the same or one for each group."""

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """(groups, rows, c) of the codes."""

    def of(self, t: Tensor, column: Tensor | int, like: Tensor) -> Tensor:
        """(groups, rows): of `t` (groups, runs, rows), what holds in the column, in the floats of `like`."""
        if not isinstance(column, int):
            every = torch.arange(len(t)) if len(t) > 1 else 0
            return t[every, column // self.run].to(like.dtype)
        return t[:, column // self.run].to(like.dtype)

    def wide(self, t: Tensor, like: Tensor) -> Tensor:
        """(groups, rows, c): `t` (groups, runs, rows) for every weight of `like`."""
        return t.mT.repeat_interleave(self.run, 2)[:, :, : like.shape[2]].expand(like.shape)


@dataclass(frozen=True)
class Lattice(Points):
    """`scale * (code - zero)`, codes the integers in [low, high]."""

    zero: Tensor
    low: int
    high: int

    def nearest(self, wanted: Tensor, column: Tensor | int) -> tuple[Tensor, Tensor]:
        scale, zero = self.of(self.scale, column, wanted), self.of(self.zero, column, wanted)
        codes = (wanted / scale).add_(zero).round_().clamp_(self.low, self.high)
        return codes, scale * (codes - zero)

    def values(self, codes: Tensor) -> Tensor:
        return self.wide(self.scale, codes) * (codes - self.wide(self.zero, codes))


@dataclass(frozen=True)
class Listed(Points):
    """`scale * listed[code]`, for ascending values (n,) that are the same everywhere."""

    listed: Tensor

    def nearest(self, wanted: Tensor, column: Tensor | int) -> tuple[Tensor, Tensor]:
        scale, listed = self.of(self.scale, column, wanted), self.listed.to(wanted.dtype)
        codes = nearest_of(wanted / scale, listed)
        return codes.to(wanted.dtype), scale * listed[codes]

    def values(self, codes: Tensor) -> Tensor:
        return self.wide(self.scale, codes) * self.listed[codes.long()]


def nearest_of(wanted: Tensor, listed: Tensor) -> Tensor:
    """The index of the nearest of the ascending values; of two as near, the lower."""
    return torch.bucketize(wanted.contiguous(), (listed[1:] + listed[:-1]) / 2)


def by_column(t: Tensor, groups: int, rows: int) -> Tensor:
    """(groups, runs, rows) of a grid's scales `t` (groups * rows or 1, runs)."""
    return t.expand(groups * rows, -1).reshape(groups, rows, -1).mT.contiguous()
