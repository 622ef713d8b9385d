"""The damage of zeroing a weight while the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.criterion import Criterion
from tersor.maths.damage import quadratic
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class OBD(Criterion):
    """Optimal brain damage: `g_i H_jj w_ij^2 / 2`, in nats; the bias, where there is one, makes up for the mean.

    Fails where inputs are correlated: what a neighbour could take over counts as lost.
    Source: LeCun, Denker and Solla 1989.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        gram = quadratic(facts.gram, free_bias=matrix.bias is not None).gram
        power = gram.diagonal(dim1=1, dim2=2).clamp_min(0)[:, None, :]
        return 0.5 * facts.fisher.double().reshape(*w.shape[:2], 1) * power * w.double().square()
