"""Affine integer grids for matrices: `value = scale * (code - zero)`, codes signed, 1 to 8 bits.

Codes lie in [-2^(bits-1), 2^(bits-1) - 1]; a symmetric grid leaves out the lowest one, so that it is the same on both
sides of zero. Zero is always a grid value, but on the symmetric grid of one bit, which is {-s/2, +s/2}.

Matrices are (rows, c) here: grouped convolutions are stacked. Scales and zeros are (rows or 1, runs): one for each run
of consecutive columns of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InputError

CLIPS = {True: (20, 0.5), False: (40, 0.2)}  # by `Integers.fine`: how many, down to which share of the range


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


@dataclass(frozen=True)
class Integers:
    """Which grids a matrix may choose from."""

    bits: int
    symmetric: bool
    granularity: Granularity

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"A grid of {self.bits} bits was asked for; 1 to 8 bits are possible.")

    @property
    def low(self) -> int:
        return -(2 ** (self.bits - 1)) + (1 if self.symmetric and self.bits > 1 else 0)

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def fine(self) -> bool:
        """Steps so small that the search for the best grid gains little."""
        return self.bits >= 6

    def check_zeros(self, keep: Sequence[int] | None) -> None:
        """Raises `InputError` where columns must become zeros and the grid has no zero."""
        if keep is not None and self.bits == 1 and self.symmetric:
            raise InputError(
                "Columns are to be dropped, but a symmetric grid of 1 bit holds no zero; use bits=2 or symmetric=False."
            )

    def run(self, columns: int) -> int:
        """Columns that share a scale within a row."""
        return min(self.granularity.size, columns) if isinstance(self.granularity, PerGroup) else columns


@dataclass(frozen=True)
class Grid:
    """One chosen grid: `scale` and `zero` float64 (rows or 1, runs), the scale exact in float32."""

    scale: Tensor
    zero: Tensor
    run: int
    low: int
    high: int

    def codes(self, w: Tensor) -> Tensor:
        """The nearest codes to `w` (rows, c), as float64 integers."""
        return (w.double() / self.wide(self.scale, w) + self.wide(self.zero, w)).round().clamp(self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        return self.wide(self.scale, codes) * (codes - self.wide(self.zero, codes))

    def round(self, w: Tensor) -> Tensor:
        """The nearest grid values to `w` (rows, c)."""
        return self.values(self.codes(w))

    def wide(self, t: Tensor, like: Tensor) -> Tensor:
        """(rows or 1, runs) -> (rows, c)."""
        return t.repeat_interleave(self.run, 1)[:, : like.shape[1]].expand(like.shape)


def absmax(w: Tensor, kind: Integers) -> Grid:
    """The grid that just reaches the extreme values of every run: the naive choice."""
    return _grid(*_extremes(w, kind), kind, w.shape[1])


def search(w: Tensor, importance: Tensor, kind: Integers) -> Grid:
    """The grid, out of 20 or 40 shrunken ranges a run, with the least `sum importance * (round(w) - w)^2`.

    importance: broadcasts to (rows, c); for example `g_i H_jj`. Ranges in which `w` would already lie on a grid of
    fewer bits are tried too. Cost: 40 rows c operations. Never worse than `absmax` in this sum.
    """
    low, high = _extremes(w, kind)
    weight = importance.double().expand(w.shape)
    best = _grid(low, high, kind, w.shape[1])
    scale, zero = best.scale, best.zero
    least = _per_run((best.round(w) - w).square() * weight, kind)
    for clip in _clips(kind):
        grid = _grid(low * clip, high * clip, kind, w.shape[1])
        error = _per_run((grid.round(w) - w).square() * weight, kind)
        better = error < least
        scale, zero = torch.where(better, grid.scale, scale), torch.where(better, grid.zero, zero)
        least = torch.minimum(error, least)
    return Grid(scale, zero, best.run, kind.low, kind.high)


def _clips(kind: Integers) -> list[float]:
    count, least = CLIPS[kind.fine]
    shrunk = [1 - (1 - least) * i / count for i in range(1, count + 1)]
    levels = {bits: 2 ** (bits - 1) - 1 if kind.symmetric else 2**bits - 1 for bits in range(1, kind.bits + 1)}
    coarser = [
        levels[kind.bits] / (n * 2 ** (kind.bits - bits)) for bits, n in levels.items() if n > 0 and bits < kind.bits
    ]
    return coarser + shrunk


def _extremes(w: Tensor, kind: Integers) -> tuple[Tensor, Tensor]:
    runs = _runs(w.double(), kind)
    low, high = runs.amin(2).clamp_max(0), runs.amax(2).clamp_min(0)
    if isinstance(kind.granularity, PerTensor):
        return low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    return low, high


def _grid(low: Tensor, high: Tensor, kind: Integers, columns: int) -> Grid:
    reach = torch.maximum(-low, high)
    if kind.bits == 1 and kind.symmetric:
        scale, zero = 2 * reach, torch.full_like(reach, -0.5)
    elif kind.symmetric:
        scale, zero = reach / kind.high, torch.zeros_like(reach)
    else:
        scale = (high - low) / (kind.high - kind.low)
        zero = (kind.low - low / _storable(scale, kind)).round().clamp(kind.low, kind.high)
    return Grid(_storable(scale, kind), zero, kind.run(columns), kind.low, kind.high)


def _storable(scale: Tensor, kind: Integers) -> Tensor:
    # Runs of zeros get the scale 1; denormal scales would be flushed to zero, the largest ones would overflow.
    largest = torch.finfo(torch.float32).max / 2**kind.bits
    return torch.where(scale > 0, scale.clamp(1e-36, largest), 1.0).float().double()


def _runs(t: Tensor, kind: Integers) -> Tensor:
    run = kind.run(t.shape[1])
    return torch.nn.functional.pad(t, (0, -t.shape[1] % run)).reshape(t.shape[0], -1, run)


def _per_run(error: Tensor, kind: Integers) -> Tensor:
    total = _runs(error, kind).sum(2)
    return total.sum().reshape(1, 1) if isinstance(kind.granularity, PerTensor) else total
