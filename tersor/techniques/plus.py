"""The sum of two techniques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tersor.forms.sum import Sum
from tersor.maths.damage import aim, quadratic
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique


@dataclass(frozen=True)
class Plus(Technique):
    """`left + right`: the right is fitted to what the left leaves over.

    `Plus(Sparse(Anywhere(0.01)), GPTQ(4))` stores a few large weights apart and the rest on a grid.
    """

    left: Technique
    right: Technique

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.left.needs | self.right.needs

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Sum:
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        whole = from_matrix(target.float(), w.shape, matrix.groups, matrix.transposed)
        still = replace(facts, drift=None)
        left = self.left.fit(matrix, whole, still, keep)
        return Sum(left, self.right.fit(matrix, whole - left.dense(), still, keep))
