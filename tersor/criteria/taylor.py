"""What removing a weight does to the loss, to first order and squared, as far as the output's Fisher can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class Taylor(Criterion):
    """`g_i w_ij^2`, in place of `E[(w_ij dL/dw_ij)^2]`.

    A profile holds no gradient of a single weight. With `dL/dw_ij = dL/dy_i x_j` and both independent, the exact score
    is `g_i H_jj w_ij^2`, which is twice `OBD`; here inputs count as of unit power. It is thus no full Taylor criterion:
    it tells outputs apart, not inputs. Source: Molchanov et al. 2019, arXiv:1906.10771.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"fisher"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        return facts.fisher.double().reshape(*w.shape[:2], 1) * w.double().square()
