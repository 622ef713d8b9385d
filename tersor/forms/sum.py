"""Two weights of the same shape, added."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Sum(Weight):
    """`left + right`, added in float32."""

    left: Weight
    right: Weight

    def dense(self) -> Tensor:
        return self.left.dense() + self.right.dense()

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def nearest(self, latent: Tensor) -> Sum:
        """One round of alternating projections: left given right, then right given the new left."""
        left = self.left.nearest(latent - self.right.dense())
        return Sum(left, self.right.nearest(latent - left.dense()))
