"""The one quadratic: what it costs to replace a layer's matrix W by V.

For `y = W x + b`, `x~ = (x, 1)`, `H = E[x~ x~^T]` and `g_i = E[(dL/dy_i)^2]` the damage is
`1/2 tr(diag(g) (V - W) H (V - W)^T)`: second order in V - W, in the units of the loss (nats for a divergence).

All matrices are batched over `groups` (grouped and depthwise convolutions): weights (groups, rows, c), Gram matrices
(groups, c + 1, c + 1) with the constant column last, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.maths.solve import solve


def damage(delta: Tensor, gram: Tensor, fisher: Tensor) -> float:
    """`1/2 sum_groups tr(diag(g) D H D^T)`.

    delta: (groups, rows, c), or (groups, rows, c + 1) with the change of the bias last. gram: (groups, >= columns of
    delta, same); further rows and columns are not read. fisher: (groups * rows,).
    """
    return 0.5 * float((fisher.double().reshape(delta.shape[:2]) * by_row(delta, gram)).sum())


def by_row(delta: Tensor, gram: Tensor) -> Tensor:
    """(groups, rows): `d H d^T` of every row d of `delta` (groups, rows, c); in float32 where both are, else in float64."""
    c = delta.shape[2]
    kind = torch.float32 if delta.dtype == gram.dtype == torch.float32 else torch.float64
    d = delta.to(kind)
    return ((d @ gram[:, :c, :c].to(kind)) * d).sum(2)


def best_bias(w: Tensor, v: Tensor, gram: Tensor, drift: Tensor | None = None) -> Tensor:
    """(groups, rows): what to add to the bias once `w` has become `v`, so that the mean output stays.

    `-(V - W) mu` from the constant column; with `drift` (`C = E[x~_original x~_now^T]`), `W mu_original - V mu_now`.
    """
    c = w.shape[2]
    now = _mean(gram)
    original = now if drift is None else drift[:, :c, c].double() / gram[:, c, c, None].clamp_min(1e-300)
    return (w.double() @ original[..., None] - v.double() @ now[..., None])[..., 0]


@dataclass(frozen=True)
class Quadratic:
    """`E |W x_original - V x_now|^2` as a function of V, up to a constant: `gram` = E[x_now x_now^T], `cross` =
    E[x_original x_now^T], both (groups, c, c). Without drift they are the same."""

    gram: Tensor
    cross: Tensor


def quadratic(gram: Tensor, drift: Tensor | None = None, free_bias: bool = True) -> Quadratic:
    """The quadratic in the weights alone; with `free_bias` the bias always takes its best value (`best_bias`)."""
    c = gram.shape[1] - 1
    h = gram.double()
    mean = _mean(gram)
    now = h[:, :c, :c] - mean[:, :, None] * h[:, None, c, :c] if free_bias else h[:, :c, :c]
    if drift is None:
        return Quadratic(now, now)
    x = drift.double()
    return Quadratic(now, x[:, :c, :c] - x[:, :c, c, None] * mean[:, None, :] if free_bias else x[:, :c, :c])


def aim(w: Tensor, q: Quadratic, keep: Sequence[int] | None = None, damping: float = 1e-4) -> Tensor:
    """(groups, rows, c): the best matrix on the inputs that are seen now, with zeros outside the columns `keep`.

    `W C_{:,K} H_KK^-1`, with a ridge of `damping` times the mean diagonal of H that pulls towards W. Every constrained
    fit to `W x_original` is the same fit to `aim x_now`. Cost: c^3 / 3 + rows c^2 operations a group.
    """
    if keep is None and q.cross is q.gram:
        return w.double().clone()
    kept = torch.arange(w.shape[2]) if keep is None else torch.as_tensor(sorted(keep), dtype=torch.long)
    old = w.double()[:, :, kept]
    h = q.gram[:, kept][:, :, kept]
    gap = w.double() @ q.cross[:, :, kept] - old @ h
    new = torch.zeros_like(w, dtype=torch.float64)
    new[:, :, kept] = old + solve(h, gap.mT, damping).mT
    return new


def _mean(gram: Tensor) -> Tensor:
    c = gram.shape[1] - 1
    return gram[:, :c, c].double() / gram[:, c, c, None].double().clamp_min(1e-300)
