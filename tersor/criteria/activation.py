"""Weights on inputs that are large on average are worth more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Activation(Criterion):
    """`E|x_j|`, the same for every output.

    Weights do not enter: a statistic for choosing inputs, that is, the channels of what comes before; poor for single
    weights. Source: Molchanov et al. 2017, arXiv:1611.06440 (its "activation" baseline).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return facts.activity.double()[:, :1].expand(w.shape)
