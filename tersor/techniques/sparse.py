"""Zero the weights that are worth least, then let the others make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tersor.criteria.obd import OBD
from tersor.criterion import Criterion
from tersor.forms.bitmask import Bitmask, bitmask_of_matrix
from tersor.maths.damage import aim, quadratic
from tersor.maths.pattern import Anywhere, Pattern
from tersor.maths.solve import masked_least_squares
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique


@dataclass(frozen=True)
class Sparse(Technique):
    """Keeps what `criterion` scores highest inside `pattern`; with `repair`, refitted by least squares on its support.

    `V_iS = (W H)_iS (H_SS)^-1` for every row i and its support S. Places that were exact zeros stay zeros. Cost: that
    of the scores, and with repair up to 128 products of r c^2 operations. Fails at high sparsity, where what is worth
    keeping depends on what else is kept: `SparseGPT` is better there. Unstructured zeros buy bytes, not time, on most
    machines. Source: Han et al. 2015 (arXiv:1506.02626); the repair, Hassibi and Stork 1992.
    """

    pattern: Pattern = Anywhere()  # noqa: RUF009 - immutable
    criterion: Criterion = OBD()  # noqa: RUF009 - immutable
    repair: bool = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.criterion.needs | {"gram"}

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Bitmask:
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        there = target != 0
        kept = self.pattern.kept(self.criterion.scores(matrix, target, facts) * there) & there
        values = masked_least_squares(target, q.gram, kept) if self.repair else target
        return bitmask_of_matrix(values, kept, w.shape, matrix.groups, matrix.transposed)
