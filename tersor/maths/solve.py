"""Positive semi-definite systems that survive dead and repeated inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def damped(gram: Tensor, damping: float) -> Tensor:
    """`H + damping * mean(diag H) I`, and 1 on the diagonal where an input is dead (a zero row). (groups, c, c)."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    ridge = damping * diagonal.clamp_min(0).mean(1, keepdim=True)
    out = gram.clone()
    out.diagonal(dim1=1, dim2=2).add_(torch.where(diagonal <= 0, torch.ones_like(diagonal), ridge))
    return out


def solve(gram: Tensor, right: Tensor, damping: float) -> Tensor:
    """`(H + damping * mean(diag H) I)^-1 right`; gram (groups, c, c), right (groups, c, n), float64.

    Where rounding has made H indefinite, the ridge grows tenfold until the factor exists.
    """
    for _ in range(12):
        factor, info = torch.linalg.cholesky_ex(damped(gram, damping))
        if not info.any():
            return torch.cholesky_solve(right, factor)
        damping = max(damping, 1e-12) * 10
    return torch.linalg.pinv(gram, hermitian=True) @ right


def masked_least_squares(w: Tensor, gram: Tensor, mask: Tensor, steps: int = 64) -> Tensor:
    """The matrix with zeros outside `mask` that is nearest to `w` in `d H d^T`, row by row. All (groups, rows, c).

    Conjugate gradients from `w * mask`, preconditioned by the diagonal: each row has its own support, so one batched
    product of rows c^2 operations a step replaces a factorisation a row. Never worse than `w * mask`.
    """
    m = mask.double()
    ridge = 1e-6 * gram.diagonal(dim1=1, dim2=2).clamp_min(0).mean(1)[:, None, None]
    scale = 1 / (gram.diagonal(dim1=1, dim2=2)[:, None, :] + ridge).clamp_min(1e-300)
    x = w.double() * m
    start = x.clone()
    residual = ((w.double() - x) @ gram) * m
    z = residual * scale
    p = z
    energy = (residual * z).sum(2, keepdim=True)
    floor = 1e-20 * energy
    for _ in range(min(steps, 2 * w.shape[2])):
        live = energy > floor
        if not live.any():
            break
        curved = (p @ gram + ridge * p) * m
        step = torch.where(live, energy / (p * curved).sum(2, keepdim=True).clamp_min(1e-300), 0.0)
        x = x + step * p
        residual = residual - step * curved
        z = residual * scale
        fresh = (residual * z).sum(2, keepdim=True)
        p = z + torch.where(live, fresh / energy.clamp_min(1e-300), 0.0) * p
        energy = fresh
    worse = _energy(x - w, gram) > _energy(start - w, gram)
    return torch.where(worse | ~torch.isfinite(x).all(2, keepdim=True), start, x)


def _energy(d: Tensor, gram: Tensor) -> Tensor:
    return ((d @ gram) * d).sum(2, keepdim=True)
