"""Rounding to a grid with error feedback (GPTQ, which is OBQ in a fixed order, which is Babai's nearest plane).

Columns are rounded one after the other; after each, the columns still free move to the best point given what is fixed:
with `U = chol(H^-1)^T`, `w_{>j} -= (w_j - q_j) / U_jj * U_{j,>j}`. The damage of the result is
`sum_j (w_j - q_j)^2 / U_jj^2`, where w_j is the value at the moment of rounding.

Names follow the papers: Frantar et al., "GPTQ", arXiv:2210.17323, and "OBC", arXiv:2208.11580; Chen et al., "The
geometry of LLM quantization", arXiv:2507.18553.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.maths.solve import damped

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
BLOCK = 64


def factor(h: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Order of the columns (groups, c), largest `H_jj` first, and the upper factor U of `H^-1` in that order.

    U is NaN where H is too far from positive definite to be factored. Cost: c^3 operations a group.
    """
    hd = damped(h, damping)
    order = hd.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    hd = _columns(_columns(hd, order).mT, order)
    chol, failed = torch.linalg.cholesky_ex(hd)
    del hd  # c^2 values each: for a wide matrix they are most of the memory
    inverse = torch.cholesky_inverse(chol)
    del chol
    u, failed_too = torch.linalg.cholesky_ex(inverse, upper=True)
    return order, torch.where(((failed != 0) | (failed_too != 0))[:, None, None], torch.nan, u)


def conditional_variances(h: Tensor, damping: float = 1e-2) -> Tensor:
    """(groups, c): `1 / U_jj^2`, what an error in column j costs once the later columns have made up for it."""
    order, u = factor(h, damping)
    variances = u.diagonal(dim1=1, dim2=2).square().reciprocal()
    return torch.empty_like(variances).scatter_(1, order, variances)


def gptq(w: Tensor, h: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, damping: float) -> Tensor:
    """(groups, rows, c) float64 codes for `w` on the grid `scale * (code - zero)`, codes in [low, high].

    w, scale, zero: (groups, rows, c); h: (groups, c, c). Exact zeros of `w` stay zeros and take no part. Cost: c^3 +
    rows c^2 operations a group. The result may be worse than plain rounding where H is nearly singular, and is NaN where
    H cannot be factored: compare.
    """
    return feedback(w, *factor(h, damping), scale, zero, low, high)


def feedback(w: Tensor, order: Tensor, u: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """`gptq` with what `factor` gave: one factor serves several grids. Cost: rows c^2 operations a group."""
    w, scale, zero = (_columns(t.double(), order) for t in (w, scale, zero))
    frozen = w == 0
    codes = torch.empty_like(w)
    for start in range(0, w.shape[2], BLOCK):
        stop = min(start + BLOCK, w.shape[2])
        errors = torch.empty_like(w[:, :, start:stop])
        for j in range(start, stop):
            wanted = torch.where(frozen[:, :, j], 0.0, w[:, :, j])
            code = (wanted / scale[:, :, j] + zero[:, :, j]).round().clamp(low, high)
            error = (w[:, :, j] - scale[:, :, j] * (code - zero[:, :, j])) / u[:, None, j, j]
            w[:, :, j + 1 : stop] -= error[:, :, None] * u[:, None, j, j + 1 : stop]
            codes[:, :, j], errors[:, :, j - start] = code, error
        w[:, :, stop:] -= errors @ u[:, start:stop, stop:]
    return torch.empty_like(codes).scatter_(2, order[:, None, :].expand_as(codes), codes)


def polish(
    codes: Tensor, w: Tensor, h: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, sweeps: int
) -> Tensor:
    """Coordinate descent on the codes: each takes its best value given all others, column by column, `sweeps` times.

    Never increases `d H d^T` of any row. Shapes as in `gptq`; codes that stand on exact zeros of `w` stay. Cost: 2 rows
    c^2 operations a sweep. Source: Behdin et al., "QuantEase", arXiv:2309.01885.
    """
    codes, diagonal = codes.clone(), h.diagonal(dim1=1, dim2=2)
    free = (w != 0) & (diagonal > 0)[:, None, :]
    for _ in range(sweeps):
        slope = (scale * (codes - zero) - w) @ h
        for start in range(0, w.shape[2], BLOCK):
            stop = min(start + BLOCK, w.shape[2])
            steps = torch.empty_like(w[:, :, start:stop])
            for j in range(start, stop):
                hjj = diagonal[:, None, j].clamp_min(1e-300)
                wanted = (codes[:, :, j] - slope[:, :, j] / (hjj * scale[:, :, j])).round().clamp(low, high)
                step = torch.where(free[:, :, j], wanted - codes[:, :, j], 0.0) * scale[:, :, j]
                codes[:, :, j] = torch.where(free[:, :, j], wanted, codes[:, :, j])
                slope[:, :, j:stop] += step[:, :, None] * h[:, None, j, j:stop]
                steps[:, :, j - start] = step
            slope[:, :, stop:] += steps @ h[:, start:stop, stop:]  # the columns before are not read again in this sweep
    return codes


def _columns(t: Tensor, order: Tensor) -> Tensor:
    return t.gather(2, order[:, None, :].expand_as(t))
