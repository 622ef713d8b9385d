"""Choosing zeros for all columns at once, by the alternating direction method of multipliers (ALPS).

Minimise `tr((X - W) H (X - W)^T)` over pairs X = D, where D lies in the pattern:

    X = (W H - V + rho D) (H + rho I)^-1,    D = project(X + V / rho),    V += rho (X - D)

with rho growing the faster the more the support of D still changes. Rows are scaled by what their errors cost, columns to
a unit diagonal of H, so that the projection keeps what `OBD` would. Source: Meng et al., "ALPS", arXiv:2406.07831.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.maths.pattern import Pattern

EVERY = 10  # steps between two values of rho; with 3, as published, 0.6 to 1.7 % more damage was seen
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # more than this share of the support changed: rho grows by that


def alps(w: Tensor, h: Tensor, weigh: Tensor, pattern: Pattern, steps: int = 600, rho: float = 0.1) -> Tensor:
    """bool (groups, rows, c): which weights of `w` (groups, rows, c) stay; exact zeros of `w` are never chosen.

    h: (groups, c, c); weigh: (groups, rows). Cost: one eigendecomposition and up to `steps` times 2 rows c^2
    operations a group, and a sort a step.
    """
    scale = _scale(h)
    h = h / (scale[:, :, None] * scale[:, None, :])
    a = w.double() * scale[:, None, :] * weigh.sqrt()[:, :, None]
    a = a / a.abs().max().clamp_min(1e-300)
    allowed = w != 0
    values, vectors = torch.linalg.eigh(h)
    pull, d, v = a @ h, a, torch.zeros_like(a)
    before = kept = pattern.kept(a.square()) & allowed
    for step in range(1, steps + 1):
        x = (((pull - v + rho * d) @ vectors) / (values.clamp_min(0) + rho)[:, None, :]) @ vectors.mT
        y = (x + v / rho) * allowed
        kept = pattern.kept(y.square()) & allowed
        d = y * kept
        v = v + rho * (x - d)
        if step % EVERY == 0:
            changed = int((kept ^ before).sum()) / max(1, int(kept.sum()))
            if changed == 0 and step > EVERY:
                break
            rho *= next((by for share, by in GROWTH if changed > share), 1.1)
            before = kept
    return kept


def _scale(h: Tensor) -> Tensor:
    """(groups, c): the square root of the diagonal, kept away from zero."""
    diagonal = h.diagonal(dim1=1, dim2=2).clamp_min(0)
    scale = (diagonal + 1e-6 * diagonal.mean(1, keepdim=True)).sqrt()
    return torch.where(scale > 0, scale, 1.0)
