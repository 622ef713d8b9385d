"""For every weight of a matrix, the values that it may take: what rounding with error feedback asks of a grid.

Shapes: (groups, rows, c) in float64, one entry a weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class Points(ABC):
    """The values, in the order of the columns."""

    @abstractmethod
    def ordered(self, order: Tensor) -> Points:
        """The same with the columns in the `order` (groups, c)."""

    @abstractmethod
    def nearest(self, wanted: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """Codes and values (groups, rows) nearest to what is `wanted` in column j."""

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """(groups, rows, c) of the codes."""


@dataclass(frozen=True)
class Lattice(Points):
    """`scale * (code - zero)`, codes the integers in [low, high]."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def ordered(self, order: Tensor) -> Lattice:
        return replace(self, scale=columns(self.scale, order), zero=columns(self.zero, order))

    def nearest(self, wanted: Tensor, j: int) -> tuple[Tensor, Tensor]:
        scale, zero = self.scale[:, :, j], self.zero[:, :, j]
        codes = (wanted / scale + zero).round().clamp(self.low, self.high)
        return codes, scale * (codes - zero)

    def values(self, codes: Tensor) -> Tensor:
        return self.scale * (codes - self.zero)


@dataclass(frozen=True)
class Listed(Points):
    """`scale * listed[code]`, for ascending values (n,) that are the same everywhere."""

    scale: Tensor
    listed: Tensor

    def ordered(self, order: Tensor) -> Listed:
        return replace(self, scale=columns(self.scale, order))

    def nearest(self, wanted: Tensor, j: int) -> tuple[Tensor, Tensor]:
        scale = self.scale[:, :, j]
        codes = nearest_of(wanted / scale, self.listed)
        return codes.double(), scale * self.listed[codes]

    def values(self, codes: Tensor) -> Tensor:
        return self.scale * self.listed[codes.long()]


def nearest_of(wanted: Tensor, listed: Tensor) -> Tensor:
    """The index of the nearest of the ascending values; of two as near, the lower."""
    return torch.bucketize(wanted.contiguous(), (listed[1:] + listed[:-1]) / 2)


def columns(t: Tensor, order: Tensor) -> Tensor:
    """(groups, rows, c) with the columns of each group in the `order` (groups, c)."""
    return t.gather(2, order[:, None, :].expand_as(t))
