"""Grids whose values are no integers: small floats, normal quantiles, powers of two, block-scaled formats, learned tables.

A format is a list of values that holds zero; a weight is a scale times one of them. Sources: fp8: Micikevicius et al. 2022,
arXiv:2209.05433; nf4: Dettmers et al. 2023, arXiv:2305.14314; fp4 and the mx formats: OCP Microscaling Formats 1.0, 2023;
powers of two: Miyashita et al. 2016, arXiv:1603.01025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log2

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.maths.grid import Cells, Granularity, Kind, PerChannel, PerGroup, storable
from tersor.maths.points import Listed, by_column, nearest_of

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def small_float(exponent: int, mantissa: int, top: float) -> tuple[float, ...]:
    """All finite values of a float of so many bits, subnormal ones too, up to `top`; ascending, zero once."""
    bias, steps = 2 ** (exponent - 1) - 1, 2**mantissa
    found = [m / steps * 2.0 ** (1 - bias) for m in range(1, steps)]
    found += [(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent) for m in range(steps)]
    positive = [v for v in found if v <= top]
    return (*(-v for v in reversed(positive)), 0.0, *positive)


def powers_of_two(bits: int) -> tuple[float, ...]:
    """Zero, and 1, 1/2, 1/4, ... with both signs: multiplications become shifts. One of the 2^bits codes is not used."""
    positive = [2.0**-k for k in reversed(range(2 ** (bits - 1) - 1))]
    return (*(-v for v in reversed(positive)), 0.0, *positive)


@dataclass(frozen=True)
class Format:
    """Ascending `values` that hold zero; how many columns share a scale (0: the row); whether scales are powers of two."""

    values: tuple[float, ...]
    run: int = 0
    shifted: bool = False


E2M1, E4M3, E5M2 = small_float(2, 1, 6.0), small_float(4, 3, 448.0), small_float(5, 2, 57344.0)
FORMATS = {
    "nf4": Format(_NF4, 64),
    "fp4": Format(E2M1, 32),
    "fp8": Format(E4M3),
    "fp8_e4m3": Format(E4M3),
    "fp8_e5m2": Format(E5M2),
    "mxfp4": Format(E2M1, 32, True),
    "mxfp8": Format(E4M3, 32, True),
    "log3": Format(powers_of_two(3)),
    "log4": Format(powers_of_two(4)),
}


@dataclass(frozen=True)
class Levels(Kind["Table"]):
    """The values of a format, times a scale for each run."""

    values: tuple[float, ...]
    granularity: Granularity
    shifted: bool = False

    def by_row(self) -> Levels:
        return replace(self, granularity=PerChannel())

    @property
    def bits(self) -> int:
        """Of a code."""
        return bits_for(len(self.values))

    @property
    def fine(self) -> bool:
        return len(self.values) >= 64

    def grid(self, low: Tensor, high: Tensor, columns: int) -> Table:
        listed = torch.tensor(self.values, dtype=torch.float64)
        tiny = torch.finfo(torch.float64).tiny
        scale = torch.maximum(-low / max(-self.values[0], tiny), high / max(self.values[-1], tiny))
        if self.shifted:
            scale = torch.where(scale > 0, torch.exp2(scale.clamp_min(tiny).log2().ceil()), scale)
            scale = scale.clamp(max=2.0**127)
        return Table(storable(scale, ceil(log2(max(2.0, *map(abs, self.values))))), listed, self.run(columns))


@dataclass(frozen=True)
class Table(Cells):
    """One chosen grid: `scale * listed[code]`. listed: (n,) float64, ascending, zero among them."""

    scale: Tensor
    listed: Tensor
    run: int

    def codes(self, w: Tensor) -> Tensor:
        return nearest_of(w / self.wide(self.scale, w), self.listed.to(w.dtype)).to(w.dtype)

    def values(self, codes: Tensor) -> Tensor:
        return self.wide(self.scale, codes) * self.listed.to(codes.dtype)[codes.long()]

    def points(self, like: Tensor) -> Listed:
        return Listed(by_column(self.scale, *like.shape[:2]), self.run, self.listed)

    def where(self, better: Tensor, other: Table) -> Table:
        return replace(self, scale=torch.where(better, other.scale, self.scale))

    def above(self, others: Sequence[Table]) -> Table:
        return replace(self, scale=torch.cat([self.scale, *(other.scale for other in others)]))

    def joined(self, rows: int, run: int) -> Table:
        return replace(self, scale=self.scale.reshape(rows, -1), run=run)


def levels_called(name: str, granularity: Granularity | None = None) -> Levels:
    """The grids of a format; granularity: else what the format is used with. Raises `InputError` for an unknown one."""
    if name not in FORMATS:
        raise InputError(f"There is no format {name!r}; choose one of {', '.join(FORMATS)}.")
    known = FORMATS[name]
    usual: Granularity = PerGroup(known.run) if known.run else PerChannel()
    return Levels(known.values, granularity or usual, known.shifted)


def bits_for(values: int) -> int:
    """Of a code for so many values."""
    return max(1, (values - 1).bit_length())


def lloyd(values: Tensor, weights: Tensor, count: int, rounds: int = 30) -> Tensor:
    """(count,) ascending: the values of least `sum weights * (nearest - values)^2` that hold zero, as k-means finds them.

    values, weights: (n,). Starts at quantiles of the weighted distribution; zero stays where it is. Cost: `rounds` n log
    count. Sources: Lloyd 1982; Han et al. 2016, arXiv:1510.00149.
    """
    order = values.argsort()
    x, mass = values[order].double(), weights[order].double().clamp_min(0)
    mass = mass + 1e-9 * mass.mean() + torch.finfo(torch.float64).tiny
    reached = mass.cumsum(0) / mass.sum()
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    centres = x[torch.searchsorted(reached, shares).clamp_max(x.numel() - 1)].clone()
    centres = _with_zero(centres)
    for _ in range(rounds):
        ends = torch.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
        cuts = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), x.numel())])
        total = torch.cat([mass.new_zeros(1), mass.cumsum(0)])[cuts].diff()
        moment = torch.cat([mass.new_zeros(1), (mass * x).cumsum(0)])[cuts].diff()
        centres = _with_zero(torch.where(total > 0, moment / total.clamp_min(1e-300), centres))
    return centres


def _with_zero(centres: Tensor) -> Tensor:
    centres = centres.clone()
    centres[centres.abs().argmin()] = 0.0
    return centres.sort().values


def table_of(centres: Sequence[float] | Tensor, scale: Tensor, run: int) -> Table:
    """A learned table as a grid."""
    return Table(scale, torch.as_tensor(centres, dtype=torch.float64).float().double(), run)
