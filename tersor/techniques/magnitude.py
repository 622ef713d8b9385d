"""Zero the smallest weights, then let the others make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.forms.bitmask import Bitmask, bitmask
from tersor.maths.damage import aim, by_row, quadratic
from tersor.maths.solve import masked_least_squares
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique


@dataclass(frozen=True)
class Magnitude(Technique):
    """Keeps the share `density` of the weights of a matrix, refitted by least squares on their own support.

    Two masks are tried, by `|w|` and by the diagonal of the quadratic, `g_i H_jj w_ij^2`, and the one of less damage
    after repair is returned. Places that were exact zeros stay zeros. Cost: up to 128 products of r c^2 operations.
    Unstructured zeros buy bytes, not time, on most machines.
    """

    density: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "fisher"})

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"Magnitude got density {self.density}; it is the share of weights kept, in (0, 1].")

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Bitmask:
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        fisher = facts.fisher.double().reshape(target.shape[:2])
        saliency = fisher[:, :, None] * q.gram.diagonal(dim1=1, dim2=2)[:, None, :] * target.square()
        found = []
        for score in (target.abs(), saliency):
            kept = _largest(score, self.density) & (target != 0)
            values = masked_least_squares(target, q.gram, kept)
            found.append((float((fisher * by_row(values - target, q.gram)).sum()), kept, values))
        _, kept, values = min(found, key=lambda f: f[0])
        shaped = (from_matrix(t, w.shape, matrix.groups, matrix.transposed) for t in (_float32(values), kept))
        return bitmask(*shaped)


def _largest(score: Tensor, density: float) -> Tensor:
    """The `density` share of places with the largest score; the first of equals. bool, same shape."""
    count = max(1, round(density * score.numel()))
    chosen = score.flatten().argsort(dim=0, descending=True, stable=True)[:count]
    return torch.zeros(score.numel(), dtype=torch.bool).index_fill_(0, chosen, True).reshape(score.shape)


def _float32(values: Tensor) -> Tensor:
    # A repair of the largest weights may leave the range of float32.
    largest = torch.finfo(torch.float32).max
    return values.clamp(-largest, largest).float()
