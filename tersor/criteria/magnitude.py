"""Large weights are worth more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Magnitude(Criterion):
    """`|w_ij|` (of a tile: its L1 norm). Needs no data. Fails where inputs or outputs differ in scale.

    Source: Han et al. 2015, arXiv:1506.02626.
    """

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return w.double().abs()
