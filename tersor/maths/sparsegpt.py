"""Choosing zeros column by column, with error feedback (SparseGPT).

Columns are settled from left to right, a run at a time: with `H = R R^T`, R upper triangular, the saliency of a weight,
given that only later columns can make up for it, is `w_j^2 R_jj^2`; the pattern chooses inside the run by it, and what is
zeroed moves the columns still free, as in `maths.gptq`.

Names follow the paper: Frantar and Alistarh, "SparseGPT", arXiv:2301.00774.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.maths.gptq import upper_factor
from tersor.maths.pattern import Pattern
from tersor.maths.solve import damped


def sparsegpt(w: Tensor, h: Tensor, weigh: Tensor, pattern: Pattern, damping: float = 1e-2) -> Tensor:
    """bool (groups, rows, c): which weights of `w` (groups, rows, c) stay.

    h: (groups, c, c); weigh: (groups, rows), what an error of a row costs. Every run keeps its share. Where H cannot be
    factored the choice is by `w` alone. Cost: c^3 / 6 + rows c^2 / 2 operations a group.
    """
    r = _factor(h, damping)
    left = w.double().mT.contiguous()  # (groups, c, rows): a column in one piece
    moved = torch.zeros_like(left)  # sum_{i<j} e_i R_ij, for errors e
    spread = weigh[:, None, :] * r.diagonal(dim1=1, dim2=2).square()[:, :, None]
    kept = torch.empty_like(left, dtype=torch.bool)
    for start in range(0, w.shape[2], pattern.run):
        stop = min(start + pattern.run, w.shape[2])
        part = slice(start, stop)
        free = left[:, part] + torch.linalg.solve_triangular(r[:, part, part].mT, moved[:, part], upper=False)
        kept[:, part] = pattern.kept((free.square() * spread[:, part]).mT).mT
        errors = torch.empty_like(free)
        for j in range(start, stop):
            value = (left[:, j] + moved[:, j] / r[:, j, j, None]) * kept[:, j]
            error = left[:, j] - value
            moved[:, j + 1 : stop].addcmul_(r[:, j, j + 1 : stop, None], error[:, None])
            errors[:, j - start] = error
        moved[:, stop:].baddbmm_(r[:, part, stop:].mT, errors)
    return kept.mT.contiguous()


def _factor(h: Tensor, damping: float) -> Tensor:
    """The upper factor; the identity where there is none."""
    r = upper_factor(damped(h, damping))
    unusable = r.isnan().any(2).any(1)[:, None, None]
    return torch.where(unusable, torch.eye(h.shape[1], dtype=h.dtype), r)
