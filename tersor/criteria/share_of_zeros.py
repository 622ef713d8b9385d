"""Weights on inputs that are often zero are worth less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class ShareOfZeros(Criterion):
    """One less the share of positions where `x_j` is zero (APoZ), the same for every output.

    A statistic for choosing inputs that come from a ReLU; without one all inputs are worth the same. Padding counts as
    zero. Fails where a rare channel decides. Source: Hu et al. 2016, arXiv:1607.03250.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return facts.activity.double()[:, 1:].expand(w.shape)
