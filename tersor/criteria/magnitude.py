"""Large weights are worth more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tersor.criterion import Criterion
from tersor.errors import InputError
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Magnitude(Criterion):
    """`|w_ij|^power`, whose sum over a tile or a channel is its L1 norm, or with `power` 2 its squared L2 norm.

    Needs no data. Fails where inputs or outputs differ in scale. Source: Han et al. 2015, arXiv:1506.02626; of channels,
    Li et al. 2017, arXiv:1608.08710.
    """

    power: int = 1

    def __post_init__(self) -> None:
        if self.power < 1:
            raise InputError(f"{self} is impossible; power is 1 or more.")

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return w.double().abs() ** self.power
