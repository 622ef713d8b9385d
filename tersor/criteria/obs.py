"""The damage of zeroing a weight once all others have made up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.criterion import Criterion
from tersor.maths.damage import quadratic
from tersor.maths.solve import solve
from tersor.profile import Facts
from tersor.site import Matrix


@dataclass(frozen=True)
class OBS(Criterion):
    """Optimal brain surgeon: `g_i w_ij^2 / (2 [H^-1]_jj)`, in nats, H with `damping` times its mean diagonal.

    Exact for one weight; many at once compete for the same repair, so that at low densities it is worse than `OBD`.
    Cost: c^3 operations. Source: Hassibi and Stork 1992.
    """

    damping: float = 1e-2
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        gram = quadratic(facts.gram, free_bias=matrix.bias is not None).gram
        one = torch.eye(gram.shape[1], dtype=gram.dtype).expand_as(gram)
        inverse = solve(gram, one, self.damping).diagonal(dim1=1, dim2=2)
        # A matrix of zeros has no inverse: its weights are worth nothing.
        alone = torch.where(inverse > 0, 0.5 / inverse, 0.0)[:, None, :]
        return facts.fisher.double().reshape(*w.shape[:2], 1) * alone * w.double().square()
