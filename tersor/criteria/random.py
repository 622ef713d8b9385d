"""Any weight is worth as much as another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform numbers, the same for the same `seed` and shape: the control that every criterion must beat."""

    seed: int = 0

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return torch.rand(w.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
