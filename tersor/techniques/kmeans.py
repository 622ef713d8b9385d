"""Share a few learned values among all weights of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.forms.codebook import Codebook, codebook
from tersor.maths.damage import aim, by_row, quadratic
from tersor.maths.gptq import DAMPINGS, gptq, polish
from tersor.maths.levels import Table, bits_for, lloyd, table_of
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique

SWEEPS = 2
ROUNDS = 2  # of fitting the table to the codes, and the codes to the table
COSTLY = 2e11  # operations; a table of a larger matrix is not fitted to its codes


@dataclass(frozen=True)
class KMeans(Technique):
    """`values` learned values for the whole matrix (weight sharing), one of them zero; each row has a scale of its own where
    `scaled`, which makes rows alike before they share.

    Weighted Lloyd with importance `g_i H_jj`; then error feedback and coordinate descent on that table, then the table
    that is best for these codes (least squares in the whole quadratic), twice; the best of all by the quadratic. Never worse
    than rounding to what Lloyd found. Cost: 4 factors of c^3 / 6, some 20 times r c^2, and r n c^2. Sources: Han et al. 2016,
    arXiv:1510.00149; Kim et al. 2024, "SqueezeLLM", arXiv:2306.07629.
    """

    values: int = 16
    scaled: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def __post_init__(self) -> None:
        if not 2 <= self.values <= 256:
            raise InputError(f"A table of {self.values} values was asked for; 2 to 256 are possible.")

    @property
    def bits(self) -> int:
        return bits_for(self.values)

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Codebook:
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        fisher = facts.fisher.double().reshape(target.shape[:2])
        table, codes = self._best(target, q.gram, fisher)
        return codebook(codes.flatten(0, 1), table, tuple(w.shape), matrix.groups, matrix.transposed)

    def _best(self, target: Tensor, gram: Tensor, fisher: Tensor) -> tuple[Table, Tensor]:
        table = self._clustered(target, gram, fisher)

        def cost(table: Table, codes: Tensor) -> float:
            lost = (by_row(table.points(target).values(codes) - target, gram) * (fisher + 1e-12)).sum()
            return float(lost.nan_to_num(torch.inf))

        found = [(table, table.codes(target.flatten(0, 1)).reshape(target.shape))]
        for _ in range(ROUNDS):
            points = table.points(target)
            tried = [gptq(target, gram, points, damping) for damping in DAMPINGS[1::2]]
            found += [(table, codes) for codes in tried if bool(codes.isfinite().all())]
            table, codes = min(found, key=lambda each: cost(*each))
            found.append((table, polish(codes, target, gram, table.points(target), SWEEPS)))
            table, codes = min(found, key=lambda each: cost(*each))
            if self.values * target.shape[0] * target.shape[1] * target.shape[2] ** 2 > COSTLY:
                break
            table = fitted_table(table, codes, target, gram, fisher)
            found.append((table, codes))
        return min(found, key=lambda each: cost(*each))

    def _clustered(self, target: Tensor, gram: Tensor, fisher: Tensor) -> Table:
        rows = target.flatten(0, 1)
        power = rows.square()
        size = (power.mean(1, keepdim=True) if self.scaled else power.mean().reshape(1, 1)).sqrt()
        scale = torch.where(size > 0, size.clamp(1e-30, 1e37), 1.0).float().double()
        spread = gram.diagonal(dim1=1, dim2=2).clamp_min(0)
        spread = spread + 1e-3 * spread.mean(1, keepdim=True)
        weights = ((fisher + 1e-3 * fisher.mean())[:, :, None] * spread[:, None, :]).flatten(0, 1) * scale.square()
        centres = lloyd((rows / scale).flatten(), weights.flatten(), self.values)
        return table_of(centres, scale, rows.shape[1])


def fitted_table(table: Table, codes: Tensor, target: Tensor, gram: Tensor, fisher: Tensor) -> Table:
    """The table of least damage for these codes, zero staying zero; `table` where it does not come out in order.

    Normal equations in the n values: `sum_i g_i s_i^2 A_i H A_i^T`, A_i (n, c) the indicators of row i.
    """
    scale = table.wide(table.scale, target.flatten(0, 1)).reshape(target.shape)
    count = table.listed.numel()
    normal, right = target.new_zeros(count, count), target.new_zeros(count)
    for group in range(target.shape[0]):
        for row in range(target.shape[1]):
            ones = torch.zeros(count, target.shape[2], dtype=target.dtype)
            ones.scatter_(0, codes[group, row].long()[None], scale[group, row][None])
            through = ones @ gram[group]
            normal += fisher[group, row] * through @ ones.mT
            right += fisher[group, row] * through @ target[group, row]
    free = (normal.diagonal() > 0) & (table.listed != 0)
    if not bool(free.any()):
        return table
    inner = normal[free][:, free]
    inner = inner + 1e-9 * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
    pull = 1e-9 * normal[free][:, free].diagonal().mean() * table.listed[free]
    listed = table.listed.clone()
    listed[free] = torch.linalg.solve(inner, right[free] + pull)
    ordered = bool((listed.diff() > 0).all()) and bool(listed.isfinite().all())
    return table_of(listed, table.scale, table.run) if ordered else table
