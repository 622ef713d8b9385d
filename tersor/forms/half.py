"""Sixteen-bit floats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Half(Weight):
    """`values`, float16 or bfloat16, in the parameter's shape. 2 bytes a value."""

    values: Tensor

    def dense(self) -> Tensor:
        return self.values.float()

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def nearest(self, latent: Tensor) -> Half:
        return half(latent, self.values.dtype)


def half(value: Tensor, dtype: torch.dtype) -> Half:
    """The nearest 16-bit floats; what is too large for them becomes the largest."""
    top = torch.finfo(dtype).max
    return Half(value.detach().float().clamp(-top, top).to(dtype))
