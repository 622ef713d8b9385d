"""A sparse tensor: one bit a place, and the values that are not zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tersor.maths.bits import pack, unpack
from tersor.maths.unfold import from_matrix
from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Bitmask(Weight):
    """`values` (float32, in storage order) where the bit of `mask` is set, exact zeros elsewhere.

    Cost: 1 / 8 byte a place and 4 bytes a value: smaller than dense below 31 values in 32.
    """

    mask: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def kept(self) -> Tensor:
        """bool, in the parameter's shape."""
        return unpack(self.mask, 1, prod(self.shape)).bool().reshape(self.shape)

    def dense(self) -> Tensor:
        out = torch.zeros(self.shape, dtype=torch.float32, device=self.values.device)
        out[self.kept] = self.values
        return out

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.mask, self.values))

    def nearest(self, latent: Tensor) -> Bitmask:
        return replace(self, values=latent.detach()[self.kept].float())


def bitmask(values: Tensor, kept: Tensor) -> Bitmask:
    """The weight that is `values` where `kept` is true and zero elsewhere."""
    return Bitmask(pack(kept, 1), values[kept].float(), tuple(values.shape))


def bitmask_of_matrix(
    values: Tensor, kept: Tensor, shape: tuple[int, ...], groups: int = 1, transposed: bool = False
) -> Bitmask:
    """The weight of `shape` from its matrices (groups, rows, c), in double: values where `kept`, zero elsewhere."""
    largest = torch.finfo(torch.float32).max  # a repair of the largest weights may leave the range of float32
    narrow = values.clamp(-largest, largest).float()
    return bitmask(*(from_matrix(t, shape, groups, transposed) for t in (narrow, kept)))
