"""Remove columns and move the others to their best values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.forms.dense import Dense
from tersor.maths.obs import damped, refit, solve
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique
from tersor.weight import Weight


@dataclass(frozen=True)
class Columns(Technique):
    """Structured OBS: the exact least-squares fit of the kept columns to the whole matrix's output.

    `V_K = W* H_:K (H_KK)^-1` with `W* = W C H^-1` where the inputs have drifted, else `W* = W`; H with `damping` times
    its mean diagonal, which pulls towards W. Where the matrix has a bias, the constant column takes part, so what is
    returned presumes that the bias is repaired too (`maths.damage.best_bias`).
    Cost: c^3 + r c^2 operations, 3 c^2 float64, a group. Fails to help where the dropped columns are independent of the
    kept ones. Source: Hassibi and Stork 1992; Frantar and Alistarh 2022 (arXiv:2208.11580).
    """

    damping: float = 1e-2
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Weight:
        if keep is None and facts.drift is None:
            return Dense(w.detach().float().clone())
        transposed = matrix.convolution is not None and matrix.convolution.transposed
        rows = to_matrix(w, matrix.groups, transposed).double()
        drifts = facts.drift if facts.drift is not None else [None] * matrix.groups
        columns = range(rows.shape[2]) if keep is None else sorted(keep)
        biased = matrix.bias is not None
        fitted = [self._one(*each, columns, biased) for each in zip(rows, facts.gram, drifts, strict=True)]
        return Dense(from_matrix(torch.stack(fitted), tuple(w.shape), matrix.groups, transposed).float())

    def _one(self, w: Tensor, gram: Tensor, drift: Tensor | None, keep: Sequence[int], biased: bool) -> Tensor:
        c = w.shape[1]
        size = c + biased  # without a bias to repair, the constant column stays out of it
        h = damped(gram.double(), self.damping)[:size, :size]
        target = torch.cat([w, w.new_zeros(len(w), biased)], 1)
        if drift is not None:
            pull = h - gram.double()[:size, :size]
            target = solve(target @ (drift.double()[:size, :size] + pull), h)
        return refit(target, h, [*keep, *range(c, size)])[:, :c]
