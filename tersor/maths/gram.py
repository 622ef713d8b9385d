"""Sums of products over positions: float32 in pieces, added in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = 0.01
BLOCKS = 16  # in which a piece of the data is looked at, to see how far they differ
_PIECE = 8192  # positions; short enough for float32 sums to keep six digits


def with_constant(rows: Tensor) -> Tensor:
    """`(..., positions, columns + 1)`: the constant 1 as the last column."""
    return torch.cat([rows, rows.new_ones((*rows.shape[:-1], 1))], -1)


def products(left: Tensor, right: Tensor) -> Tensor:
    """`sum_p left_p right_p^T`, float64 `(groups, l, r)` of `(groups, positions, l)` and `(groups, positions, r)`."""
    total = (left[:, :_PIECE].mT @ right[:, :_PIECE]).double()
    for start in range(_PIECE, left.shape[1], _PIECE):
        piece = slice(start, start + _PIECE)
        total.add_(left[:, piece].mT @ right[:, piece])
    return total


@dataclass(frozen=True)
class Scatter:
    """Squared norms (groups,) of the covariance in each of `blocks` parts of the data, about a common mean, added up."""

    squares: Tensor
    blocks: int

    def __add__(self, other: Scatter) -> Scatter:
        return Scatter(self.squares + other.squares, self.blocks + other.blocks)


def scatter(rows: Tensor, items: int = BLOCKS) -> Scatter:
    """Of (groups, positions, c), those of one of `items` side by side, in parts of the same length, at most BLOCKS and
    `items`; what is left over at the end is not looked at. Cost: positions c min(c, positions / BLOCKS) operations, for
    `|X^T X| = |X X^T|`."""
    length = max(1, rows.shape[1] // min(BLOCKS, items))
    whole = rows.shape[1] // length
    centred = rows - rows.mean(1, keepdim=True, dtype=torch.float64).to(rows.dtype)
    parts = centred[:, : whole * length].unflatten(1, (whole, length))
    squares = parts.mT @ parts if rows.shape[2] <= length else parts @ parts.mT
    return Scatter((squares / length).square().sum((1, 2, 3), dtype=torch.float64), whole)


def shrunk(gram: Tensor, seen: Scatter) -> Tensor:
    """`E[x~ x~^T]` (groups, c + 1, c + 1) as it will be on data that was not seen.

    From fewer items than columns the smallest variances come out as zero, and what only they forbid looks free. The
    covariance is then pulled towards its mean variance, `(1 - r) S + r tr(S) / c I`, with the r of least expected squared
    error: what S is off by (from how blocks of items differ: positions of one item are alike, so that counting them would
    say nothing) over what it differs from its target. That error is one of the large variances; where no variance is
    missing, the pull would only blur the small ones, by which repairs are made. So nothing is done where as many
    independent samples as columns would be off by as much as S, or more, nor where r is below NEGLIGIBLE.
    Cost: c^2 operations. Source: Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices".
    """
    n = seen.blocks
    if n < 2 or gram.shape[-1] < 3:
        return gram
    mean = gram[:, :-1, -1]
    covariance = mean[:, :, None] * mean[:, None, :]
    torch.sub(gram[:, :-1, :-1], covariance, out=covariance)
    trace, square = covariance.diagonal(dim1=1, dim2=2).sum(1), covariance.square().sum((1, 2))
    off = (seen.squares - n * square).clamp_min(0) / (n * (n - 1))
    c = covariance.shape[1]
    apart = square - trace.square() / c
    enough = c * off <= trace.square() + square  # c Gaussian samples would be off by (tr(S)^2 + |S|^2) / c
    share = torch.where(apart > 0, (off / apart.clamp_min(1e-300)).clamp(0, 1), torch.zeros_like(off))
    share = torch.where((share < NEGLIGIBLE) | (trace <= 0) | enough, torch.zeros_like(share), share)
    if not bool(share.any()):
        return gram
    out, pull = gram.clone(), covariance.neg_()
    pull.diagonal(dim1=1, dim2=2).add_((trace / c)[:, None])
    out[:, :-1, :-1] += pull.mul_(share[:, None, None])
    return out
