"""Rounding to a grid with error feedback (GPTQ, which is OBQ in a fixed order, which is Babai's nearest plane).

Columns are rounded one after the other; after each, the columns still free move to the best point given what is fixed.
With `H = R R^T`, R upper triangular, that is Babai's nearest plane: errors `e_i = w_i - q_i` ask column j to move by
`sum_{i<j} e_i R_ij / R_jj`, and the damage of the result is `sum_j (w_j - q_j)^2 R_jj^2`, where w_j is the value at the
moment of rounding. (In the papers' terms `U = R^-1`: the same steps, without an inverse of H.)

Matrices are worked on with their columns first, (groups, c, rows): a column is then read and written in one piece.

Names follow the papers: Frantar et al., "GPTQ", arXiv:2210.17323, and "OBC", arXiv:2208.11580; Chen et al., "The
geometry of LLM quantization", arXiv:2507.18553.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor import deadline
from tersor.maths.points import Points
from tersor.maths.solve import damped

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
BLOCK = 64


def factor(h: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Order of the columns (groups, c), largest `H_jj` first, and the upper factor R, `H = R R^T` in that order.

    R is NaN where H is too far from positive definite to be factored. Cost: c^3 / 6 operations a group.
    """
    hd = damped(h, damping)
    order = hd.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    hd = hd.gather(1, order[:, :, None].expand_as(hd)).gather(2, order[:, None, :].expand_as(hd))
    return order, upper_factor(hd)


def upper_factor(h: Tensor) -> Tensor:
    """The upper triangular R of `H = R R^T`; NaN where H is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(h.flip(1, 2))  # of the columns in reverse order
    if bool(failed.any()):
        lower[failed != 0] = torch.nan
    return lower.flip(1, 2)


def conditional_variances(h: Tensor, damping: float = 1e-2) -> Tensor:
    """(groups, c): `R_jj^2`, what an error in column j costs once the later columns have made up for it."""
    order, r = factor(h, damping)
    variances = r.diagonal(dim1=1, dim2=2).square()
    return torch.empty_like(variances).scatter_(1, order, variances)


def gptq(w: Tensor, h: Tensor, points: Points, damping: float) -> Tensor:
    """(groups, rows, c) codes of the `points` for `w`, in the floats of h.

    w: (groups, rows, c); h: (groups, c, c). Exact zeros of `w` stay zeros and take no part. Cost: c^3 / 6 + rows c^2 / 2
    operations a group. The result may be worse than plain rounding where H is nearly singular, and is NaN or meaningless
    where H cannot be factored: compare.
    """
    return feedback(w, *factor(h, damping), points)


def feedback(w: Tensor, order: Tensor, r: Tensor, points: Points) -> Tensor:
    """`gptq` with what `factor` gave: one factor serves several grids. Cost: rows c^2 / 2 operations a group."""
    places = order[:, :, None].expand(*order.shape, w.shape[1])
    left = w.mT.gather(1, places).to(r.dtype)
    frozen = left == 0
    moved = torch.zeros_like(left)  # sum_{i<j} e_i R_ij
    codes = torch.empty_like(left)
    for start in range(0, w.shape[2], BLOCK):
        deadline.check()
        stop = min(start + BLOCK, w.shape[2])
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            wanted = left[:, j] + moved[:, j] / r[:, j, j, None]
            code, value = points.nearest(wanted.masked_fill(frozen[:, j], 0.0), order[:, j])
            error = left[:, j] - value
            moved[:, j + 1 : stop].addcmul_(r[:, j, j + 1 : stop, None], error[:, None])
            codes[:, j], errors[:, j - start] = code, error
        moved[:, stop:].baddbmm_(r[:, start:stop, stop:].mT, errors)
    return torch.empty_like(codes).scatter_(1, places, codes).mT


def polish(codes: Tensor, w: Tensor, h: Tensor, points: Points, sweeps: int) -> Tensor:
    """Coordinate descent on the codes: each takes its best value given all others, column by column, `sweeps` times.

    Never increases `d H d^T` of any row. Shapes as in `gptq`; codes that stand on exact zeros of `w` stay. Cost: 1.5 rows
    c^2 operations a sweep. Source: Behdin et al., "QuantEase", arXiv:2309.01885.
    """
    diagonal, tiny = h.diagonal(dim1=1, dim2=2), torch.finfo(h.dtype).tiny
    free = ((w != 0) & (diagonal > 0)[:, None, :]).mT.contiguous()
    values = points.values(codes).to(h.dtype).mT.contiguous()
    wanted, out = w.to(h.dtype).mT, codes.to(h.dtype).mT.clone(memory_format=torch.contiguous_format)
    for _ in range(sweeps):
        slope = h @ (values - wanted)
        for start in range(0, w.shape[2], BLOCK):
            deadline.check()
            stop = min(start + BLOCK, w.shape[2])
            steps = torch.empty_like(slope[:, start:stop])
            for j in range(start, stop):
                aim = values[:, j] - slope[:, j] / diagonal[:, j, None].clamp_min(tiny)
                code, value = points.nearest(aim, j)
                step = torch.where(free[:, j], value - values[:, j], 0.0)
                out[:, j] = torch.where(free[:, j], code, out[:, j])
                values[:, j] += step
                slope[:, j:stop].addcmul_(h[:, j, j:stop, None], step[:, None])
                steps[:, j - start] = step
            # The columns before are not read again in this sweep.
            slope[:, stop:].baddbmm_(h[:, stop:, start:stop], steps)
    return out.mT
