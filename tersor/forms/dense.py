"""A float32 tensor as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Dense(Weight):
    """`values`, float32, in the parameter's shape. 4 bytes a value."""

    values: Tensor

    def dense(self) -> Tensor:
        return self.values.detach().clone()

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def nearest(self, latent: Tensor) -> Dense:
        return Dense(latent.detach().clone())
