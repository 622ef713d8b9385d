"""One technique after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique
from tersor.weight import Weight


@dataclass(frozen=True)
class Then(Technique):
    """`second` fitted to what `first` made of the weight; the zeros of the first stay where the second promises so.

    Where the first is a least-squares fit, the damages add up: its residual is orthogonal to what the second changes.
    `Then(Sparse(Anywhere(0.5)), GPTQ(4))` prunes and then quantises what is left.
    """

    first: Technique
    second: Technique

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.first.needs | self.second.needs

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Weight:
        value = self.first.fit(matrix, w, facts, keep).dense()
        # The first has already moved towards what the drifted inputs ask for.
        return self.second.fit(matrix, value, replace(facts, drift=None), keep)
