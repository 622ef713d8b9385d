"""Round to a float, logarithmic or block-scaled format with error feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tersor.forms.codebook import Codebook, codebook
from tersor.maths.damage import aim, quadratic
from tersor.maths.grid import Granularity
from tersor.maths.levels import Levels, levels_called
from tersor.maths.rounding import fed_back
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique


@dataclass(frozen=True)
class Floats(Technique):
    """A scale for each run of columns times a value of the format (`maths.levels.FORMATS`): fp8, nf4, mxfp4, log4, ...

    granularity: None takes what the format is used with. The best of plain rounding and of error feedback, scales searched,
    polished, as in `GPTQ` and at its cost; never worse than rounding to the nearest value. Formats of 8 bits gain little by it.
    """

    format: str = "nf4"
    granularity: Granularity | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def __post_init__(self) -> None:
        self._kind()  # raises on an unknown format

    @property
    def bits(self) -> int:
        return self._kind().bits

    def _kind(self) -> Levels:
        return levels_called(self.format, self.granularity)

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Codebook:
        kind = self._kind()
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        chosen = fed_back(target, q.gram, facts.fisher.double(), kind)
        codes = chosen.codes.flatten(0, 1)
        return codebook(codes, chosen.grid, tuple(w.shape), matrix.groups, matrix.transposed, kind.shifted)
