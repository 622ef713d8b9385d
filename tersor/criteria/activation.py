"""Weights on inputs that are far from zero on average are worth more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Activation(Criterion):
    """`|E[x_j]|` from the constant column of H, the same for every output.

    Behind a ReLU it is the mean absolute input; elsewhere it is only a lower bound of it. Weights do not enter: a
    statistic for choosing inputs, poor for single weights.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        c = w.shape[2]
        return facts.gram.double()[:, None, :c, c].abs().expand(w.shape)
