"""Grids for matrices; here those of integers: `value = scale * (code - zero)`, codes signed, 1 to 8 bits.

Codes lie in [-2^(bits-1), 2^(bits-1) - 1]; a symmetric grid leaves out the lowest one, so that it is the same on both
sides of zero. Zero is always a grid value, but on the symmetric grid of one bit, which is {-s/2, +s/2}.

Matrices are (rows, c) here: grouped convolutions are stacked. Scales and zeros are (rows or 1, runs): one for each run
of consecutive columns of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.maths.points import Lattice, Points, by_column

CHUNK = 1 << 16  # values whose grids are searched together: more would not stay in the processor's cache
CLIPS = {True: (20, 0.5), False: (40, 0.2)}  # by `Kind.fine`: how many, down to which share of the range


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole matrix."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output (row)."""


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` consecutive columns of a row; the last run of a row may be shorter."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"PerGroup got size {self.size}; it needs at least one column, for example PerGroup(32).")


Granularity = PerTensor | PerChannel | PerGroup


class Cells(ABC):
    """A chosen grid of any kind: codes, and a scale for each run of columns.

    scale: float64 (rows or 1, runs), exact in float32. run: columns that share one.
    """

    scale: Tensor
    run: int

    @abstractmethod
    def codes(self, w: Tensor) -> Tensor:
        """The nearest codes to `w` (rows, c), as integers in the floats of `w`."""

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """(rows, c) of the codes."""

    @abstractmethod
    def points(self, like: Tensor) -> Points:
        """What each weight of a matrix such as `like` (groups, rows, c) may be."""

    @abstractmethod
    def where(self, better: Tensor, other: Self) -> Self:
        """This one, with the scales of `other` where it is `better` (broadcasts to scale)."""

    @abstractmethod
    def above(self, others: Sequence[Self]) -> Self:
        """The grid of more rows, those of the `others` below."""

    @abstractmethod
    def joined(self, rows: int, run: int) -> Self:
        """Of a grid whose rows are runs: that of `rows` rows, cut into runs of `run` columns."""

    def round(self, w: Tensor) -> Tensor:
        """The nearest grid values to `w` (rows, c)."""
        return self.values(self.codes(w))

    def wide(self, t: Tensor, like: Tensor) -> Tensor:
        """(rows or 1, runs) -> (rows, c), in the floats of `like`, where those are floats."""
        t = t.to(like.dtype) if like.is_floating_point() else t
        return (t if t.shape[1] == 1 else t.repeat_interleave(self.run, 1)[:, : like.shape[1]]).expand(like.shape)


C = TypeVar("C", bound=Cells)


class Kind(ABC, Generic[C]):
    """Which grids a matrix may choose from."""

    granularity: Granularity

    @abstractmethod
    def by_row(self) -> Self:
        """The same with a scale for each row."""

    @property
    @abstractmethod
    def fine(self) -> bool:
        """Steps so small that the search for the best grid gains little."""

    @abstractmethod
    def grid(self, low: Tensor, high: Tensor, columns: int) -> C:
        """The grid that reaches from `low` to `high` (rows or 1, runs)."""

    def coarser(self) -> list[float]:
        """Shares of the range, above 1 too, at which the values of grids of fewer bits are met."""
        return []

    def check_zeros(self, keep: Sequence[int] | None) -> None:
        """Raises `InputError` where columns must become zeros and the grid has no zero."""

    def run(self, columns: int) -> int:
        """Columns that share a scale within a row."""
        return min(self.granularity.size, columns) if isinstance(self.granularity, PerGroup) else columns


@dataclass(frozen=True)
class Integers(Kind["Grid"]):
    """Signed integers, symmetric about zero or with a zero point."""

    bits: int
    symmetric: bool
    granularity: Granularity

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"A grid of {self.bits} bits was asked for; 1 to 8 bits are possible.")

    def by_row(self) -> Integers:
        return replace(self, granularity=PerChannel())

    @property
    def low(self) -> int:
        return -(2 ** (self.bits - 1)) + (1 if self.symmetric and self.bits > 1 else 0)

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def fine(self) -> bool:
        return self.bits >= 6

    def check_zeros(self, keep: Sequence[int] | None) -> None:
        if keep is not None and self.bits == 1 and self.symmetric:
            raise InputError(
                "Columns are to be dropped, but a symmetric grid of 1 bit holds no zero; use bits=2 or symmetric=False."
            )

    def coarser(self) -> list[float]:
        levels = {bits: 2 ** (bits - 1) - 1 if self.symmetric else 2**bits - 1 for bits in range(1, self.bits + 1)}
        return [
            levels[self.bits] / (n * 2 ** (self.bits - bits))
            for bits, n in levels.items()
            if n > 0 and bits < self.bits
        ]

    def grid(self, low: Tensor, high: Tensor, columns: int) -> Grid:
        reach = torch.maximum(-low, high)
        if self.bits == 1 and self.symmetric:
            scale, zero = 2 * reach, torch.full_like(reach, -0.5)
        elif self.symmetric:
            scale, zero = reach / self.high, torch.zeros_like(reach)
        else:
            scale = (high - low) / (self.high - self.low)
            zero = (self.low - low / storable(scale, self.bits)).round().clamp(self.low, self.high)
        return Grid(storable(scale, self.bits), zero, self.run(columns), self.low, self.high)


@dataclass(frozen=True)
class Grid(Cells):
    """One chosen grid of integers: `scale` and `zero` float64 (rows or 1, runs)."""

    scale: Tensor
    zero: Tensor
    run: int
    low: int
    high: int

    def codes(self, w: Tensor) -> Tensor:
        return (w / self.wide(self.scale, w)).add_(self.wide(self.zero, w)).round_().clamp_(self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        return self.wide(self.scale, codes) * (codes - self.wide(self.zero, codes))

    def points(self, like: Tensor) -> Lattice:
        scale, zero = (by_column(t, *like.shape[:2]) for t in (self.scale, self.zero))
        return Lattice(scale, self.run, zero, self.low, self.high)

    def where(self, better: Tensor, other: Grid) -> Grid:
        scale, zero = torch.where(better, other.scale, self.scale), torch.where(better, other.zero, self.zero)
        return replace(self, scale=scale, zero=zero)

    def above(self, others: Sequence[Grid]) -> Grid:
        scale = torch.cat([self.scale, *(other.scale for other in others)])
        zero = torch.cat([self.zero, *(other.zero for other in others)])
        return replace(self, scale=scale, zero=zero)

    def joined(self, rows: int, run: int) -> Grid:
        return replace(self, scale=self.scale.reshape(rows, -1), zero=self.zero.reshape(rows, -1), run=run)


def absmax(w: Tensor, kind: Kind[C]) -> C:
    """The grid that just reaches the extreme values of every run: the naive choice."""
    return kind.grid(*_extremes(w, kind), w.shape[1])


def search(w: Tensor, importance: Tensor, kind: Kind[C]) -> C:
    """The grid, out of 20 or 40 shrunken ranges a run, with the least `sum importance * (round(w) - w)^2`.

    importance: broadcasts to (rows, c); for example `g_i H_jj`. Ranges in which `w` would already lie on a grid of
    fewer bits are tried too. Cost: 40 rows c operations. Never worse than `absmax` in this sum.
    """
    if isinstance(kind.granularity, PerGroup) and kind.run(w.shape[1]) < w.shape[1]:
        runs, weights = _runs(w, kind), _runs(importance.expand(w.shape), kind)
        joined = search(runs.flatten(0, 1), weights.flatten(0, 1), kind.by_row())
        return joined.joined(len(w), kind.run(w.shape[1]))
    some = max(1, CHUNK // max(1, w.shape[1]))
    if len(w) > some and not isinstance(kind.granularity, PerTensor):
        importances = importance.expand(w.shape).split(some)
        first, *others = (search(part, i, kind) for part, i in zip(w.split(some), importances, strict=True))
        return first.above(others)
    low, high = _extremes(w, kind)
    weight = importance.to(w.dtype).expand(w.shape)
    best = kind.grid(low, high, w.shape[1])
    least = _per_run(best.round(w).sub_(w).square_().mul_(weight), kind)
    for clip in _clips(kind):
        grid = kind.grid(low * clip, high * clip, w.shape[1])
        error = _per_run(grid.round(w).sub_(w).square_().mul_(weight), kind)
        best = best.where(error < least, grid)
        least = torch.minimum(error, least)
    return best


def storable(scale: Tensor, bits: int) -> Tensor:
    """Scales as float32 holds them: those of runs of zeros become 1, none is so small or so large as to be lost."""
    largest = torch.finfo(torch.float32).max / 2**bits
    return torch.where(scale > 0, scale.clamp(1e-36, largest), 1.0).float().double()


def _clips(kind: Kind) -> list[float]:
    count, least = CLIPS[kind.fine]
    return kind.coarser() + [1 - (1 - least) * i / count for i in range(1, count + 1)]


def _extremes(w: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    runs = _runs(w.double(), kind)
    low, high = runs.amin(2).clamp_max(0), runs.amax(2).clamp_min(0)
    if isinstance(kind.granularity, PerTensor):
        return low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    return low, high


def _runs(t: Tensor, kind: Kind) -> Tensor:
    run = kind.run(t.shape[1])
    return torch.nn.functional.pad(t, (0, -t.shape[1] % run)).reshape(t.shape[0], -1, run)


def _per_run(error: Tensor, kind: Kind) -> Tensor:
    total = _runs(error, kind).sum(2)
    return total.sum().reshape(1, 1) if isinstance(kind.granularity, PerTensor) else total
