"""Rotations that spread what stands in a few channels over all of them.

Source: Ashkboos et al. 2024, "QuaRot: outlier-free 4-bit inference in rotated LLMs", arXiv:2404.00456.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hadamard(size: int) -> Tensor:
    """(size, size) float64, symmetric and its own inverse: blocks of Sylvester's matrix, as large as the power of two that
    divides `size`."""
    most = size & -size
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < most:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return torch.block_diag(*[h / most**0.5] * (size // most))


def turned(t: Tensor, size: int, axis: int) -> Tensor:
    """`t` with each run of `size` values along `axis` rotated; twice gives `t` again, but for rounding."""
    last = t.movedim(axis, -1)
    found = (last.double().reshape(-1, size) @ hadamard(size)).to(t.dtype).reshape(last.shape)
    return found.movedim(-1, axis).contiguous()
