"""Weights on loud inputs are worth more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class FeatureMap(Criterion):
    """`sqrt(H_jj)`: the norm of input j per position, the same for every output.

    A statistic for choosing inputs, that is, the channels of what comes before; weights do not enter. Fails where a quiet
    channel decides. Source: He et al. 2017, arXiv:1707.06168 (its "max response" baseline).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        power = facts.gram.double().diagonal(dim1=1, dim2=2)[:, None, : w.shape[2]]
        return power.clamp_min(0).sqrt().expand(w.shape)
