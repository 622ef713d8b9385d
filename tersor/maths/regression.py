"""Least squares of wanted outputs on present inputs, from sums alone.

For outputs `t` (r values) and inputs with the constant last `x~ = (x, 1)` (c + 1 values), per group of a grouped matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.maths.gram import products, with_constant
from tersor.maths.obs import damped, solve

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Moments:
    """Means over positions: `gram` E[x~ x~^T] (groups, c + 1, c + 1), `cross` E[t x~^T] (groups, r, c + 1), `power`
    E[t^2] (groups, r); all float64, over `count` positions."""

    gram: Tensor
    cross: Tensor
    power: Tensor
    count: int

    def __add__(self, other: Moments) -> Moments:
        total = self.count + other.count
        gram, cross, power = (
            mine.lerp(theirs, other.count / total)
            for mine, theirs in zip(self._tensors(), other._tensors(), strict=True)
        )
        return Moments(gram, cross, power, total)

    def add_(self, other: Moments) -> Moments:
        """The same sum, in the place of these."""
        total = self.count + other.count
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine.lerp_(theirs, other.count / total)
        return Moments(*self._tensors(), total)

    def to(self, dtype: torch.dtype) -> Moments:
        """The same in other floats."""
        return Moments(self.gram.to(dtype), self.cross.to(dtype), self.power.to(dtype), self.count)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.gram, self.cross, self.power


def moments(rows: Tensor, wanted: Tensor) -> Moments:
    """From `rows` (groups, positions, c) and `wanted` (groups, positions, r)."""
    x = with_constant(rows)
    count = rows.shape[1]
    power = wanted.double().square().sum(1)
    return Moments(products(x, x).div_(count), products(wanted, x).div_(count), power / count, count)


def error(w: Tensor, m: Moments) -> Tensor:
    """(groups, r): `E (t - W x~)^2` for `w` (groups, r, c + 1)."""
    return ((w @ m.gram - 2 * m.cross) * w).sum(-1) + m.power


def optimum(w: Tensor, m: Moments, ridge: float, biased: bool = True) -> Tensor:
    """The `W*` (groups, r, c + 1) of least error, pulled towards `w` by `ridge` times the mean diagonal of H.

    Without `biased` the constant column stays as it is in `w`. Cost: c^3 / 3 + r c^2 operations a group.
    """
    return _pulled(w, m.gram, m.cross - w @ m.gram, ridge, biased)


def _pulled(w: Tensor, gram: Tensor, gap: Tensor, ridge: float, biased: bool) -> Tensor:
    size = w.shape[2] if biased else w.shape[2] - 1
    h = damped(gram, ridge)
    out = w.clone()
    out[:, :, :size] += solve(gap[:, :, :size], h[:, :size, :size])
    return out


def best_ridge(
    w: Tensor, fit: Moments, check: Moments, weigh: Tensor, biased: bool = True, ridges: Sequence[float] = RIDGES
) -> float | None:
    """The ridge whose optimum on `fit` errs least on `check`, rows weighed by `weigh` (groups, r).

    None where staying at `w` is better than all of them.
    """
    errors: dict[float | None, float] = {None: float((weigh * error(w, check)).sum())}
    gap = fit.cross - w @ fit.gram
    for ridge in ridges:
        errors[ridge] = float((weigh * error(_pulled(w, fit.gram, gap, ridge, biased), check)).sum())
    return min(errors, key=lambda r: errors[r])


def matched(v: Tensor, m: Moments, limit: float = 4.0) -> Tensor:
    """`v` (groups, r, c + 1) with each row scaled about its mean so that its output varies as much as the wanted one.

    A least-squares fit varies less than its target by the share that it cannot explain; a nonlinearity behind it minds.
    Scales stay within `limit` and its inverse.
    """
    mean = (v @ m.gram[:, :, -1:])[..., 0]
    varies = ((v @ m.gram) * v).sum(-1) - mean.square()
    wanted = m.power - m.cross[..., -1].square()
    scale = (wanted.clamp_min(0) / varies.clamp_min(1e-30)).sqrt().clamp(1 / limit, limit)
    scale = torch.where(varies > 1e-12 * m.power.clamp_min(1e-30), scale, torch.ones_like(scale))
    out = v * scale[..., None]
    out[..., -1] += mean * (1 - scale)
    return out
