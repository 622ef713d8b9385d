"""Large weights on loud inputs are worth more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Wanda(Criterion):
    """`|w_ij| sqrt(H_jj)`, with H as measured, the mean included.

    The paper compares scores within an output only, which is the pattern `EachRow`; `NofM` does so by itself.
    Source: Sun et al. 2023, arXiv:2306.11695.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        power = facts.gram.double().diagonal(dim1=1, dim2=2)[:, None, : w.shape[2]]
        return w.double().abs() * power.clamp_min(0).sqrt()
