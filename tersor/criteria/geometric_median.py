"""Outputs whose weights the others could stand in for are worth less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """`sum_k |w_i - w_k|`, the same for every weight of output i: small near the geometric median of all outputs.

    A criterion for whole outputs; of single weights it tells nothing. Needs no data. Cost: r^2 c operations a group.
    Fails where similar weights are read by different places in different ways. Source: He et al. 2019 (FPGM),
    arXiv:1811.00250.
    """

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        rows = w.double()
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(2, keepdim=True).expand(w.shape)
