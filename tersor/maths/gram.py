"""Sums of products over positions: float32 in pieces, added in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_PIECE = 8192  # positions; short enough for float32 sums to keep six digits


def with_constant(rows: Tensor) -> Tensor:
    """`(..., positions, columns + 1)`: the constant 1 as the last column."""
    return torch.cat([rows, rows.new_ones((*rows.shape[:-1], 1))], -1)


def products(left: Tensor, right: Tensor) -> Tensor:
    """`sum_p left_p right_p^T`, float64 `(groups, l, r)` of `(groups, positions, l)` and `(groups, positions, r)`."""
    total = torch.zeros(left.shape[0], left.shape[2], right.shape[2], dtype=torch.float64)
    for start in range(0, left.shape[1], _PIECE):
        piece = slice(start, start + _PIECE)
        total += (left[:, piece].mT @ right[:, piece]).double()
    return total
