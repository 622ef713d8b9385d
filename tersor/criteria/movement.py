"""Which way training moves a weight: away from zero, or towards it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.errors import InputError
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Movement(Criterion):
    """`-sum_t w_ij dL/dw_ij` over the steps of a training, above the least of the matrix.

    Needs that training (`facts.movement`, which `prune` with a recovery provides); small weights that grow are worth more than
    large ones that shrink. Best where much goes and much is trained. Source: Sanh et al. 2020, arXiv:2005.07683.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"movement"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        if facts.movement is None:
            raise InputError(
                "The criterion movement scores what training does to weights; give recover, for example 1epochs."
            )
        moved = facts.movement.double().reshape(w.shape)
        return moved - moved.min()
