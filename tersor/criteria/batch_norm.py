"""Outputs that vary little are worth less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class BatchNorm(Criterion):
    """The standard deviation of output i, `sqrt(w_i Cov w_i^T)` with the covariance of the inputs from H; the same for
    every weight of the output.

    Where a batch norm follows, and is folded into the matrix as Tersor does, it is the norm's scale `|gamma_i|` on the
    data the norm was estimated on; it is defined without a norm as well. A criterion for whole outputs. Cost: r c^2.
    Source: Liu et al. 2017 (network slimming), arXiv:1708.06519.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        c = w.shape[2]
        gram, rows = facts.gram.double(), w.double()
        mean = gram[:, :c, c:]
        varies = ((rows @ gram[:, :c, :c]) * rows).sum(2, keepdim=True) - (rows @ mean).square()
        return varies.clamp_min(0).sqrt().expand(w.shape)
