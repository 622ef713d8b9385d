"""Choosing zeros column by column, with error feedback (SparseGPT).

Columns are settled from left to right, a run at a time: with `U = chol(H^-1)^T`, the saliency of a weight, given that
only later columns can make up for it, is `w_j^2 / U_jj^2`; the pattern chooses inside the run by it, and what is zeroed
moves the columns still free: `w_{>j} -= w_j / U_jj * U_{j,>j}`.

Names follow the paper: Frantar and Alistarh, "SparseGPT", arXiv:2301.00774.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.maths.pattern import Pattern
from tersor.maths.solve import damped


def sparsegpt(w: Tensor, h: Tensor, weigh: Tensor, pattern: Pattern, damping: float = 1e-2) -> Tensor:
    """bool (groups, rows, c): which weights of `w` (groups, rows, c) stay.

    h: (groups, c, c); weigh: (groups, rows), what an error of a row costs. Every run keeps its share. Where H cannot be
    factored the choice is by `w` alone. Cost: c^3 + rows c^2 operations a group.
    """
    u = _factor(h, damping)
    w = w.double().clone()
    spread = weigh[:, :, None] / u.diagonal(dim1=1, dim2=2).square()[:, None, :]
    kept = torch.empty_like(w, dtype=torch.bool)
    for start in range(0, w.shape[2], pattern.run):
        stop = min(start + pattern.run, w.shape[2])
        part = slice(start, stop)
        kept[:, :, part] = pattern.kept(w[:, :, part].square() * spread[:, :, part])
        errors = torch.empty_like(w[:, :, part])
        for j in range(start, stop):
            error = torch.where(kept[:, :, j], 0.0, w[:, :, j]) / u[:, None, j, j]
            w[:, :, j + 1 : stop] -= error[:, :, None] * u[:, None, j, j + 1 : stop]
            errors[:, :, j - start] = error
        w[:, :, stop:] -= errors @ u[:, part, stop:]
    return kept


def _factor(h: Tensor, damping: float) -> Tensor:
    """The upper factor of `H^-1`; the identity where there is none."""
    chol, failed = torch.linalg.cholesky_ex(damped(h, damping))
    u, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(chol), upper=True)
    unusable = ((failed != 0) | (failed_too != 0))[:, None, None]
    return torch.where(unusable, torch.eye(h.shape[1], dtype=h.dtype), u)
