"""Keep weights as 16-bit floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.forms.half import Half, half
from tersor.maths.damage import aim, quadratic
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.site import Matrix
from tersor.technique import Technique

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Cast(Technique):
    """Each weight to the nearest value of `fp16` (11 bits of mantissa, up to 65504) or `bf16` (8 bits, float32's range).

    Where columns are dropped or inputs have drifted, the least-squares repair is rounded. Cost: r c operations.
    """

    format: str = "bf16"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        if self.format not in DTYPES:
            raise InputError(f"There is no 16-bit format {self.format!r}; choose one of {', '.join(DTYPES)}.")

    @property
    def bits(self) -> int:
        return 16

    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Half:
        q = quadratic(facts.gram, facts.drift, free_bias=matrix.bias is not None)
        target = aim(to_matrix(w, matrix.groups, matrix.transposed), q, keep)
        return half(from_matrix(target, tuple(w.shape), matrix.groups, matrix.transposed), DTYPES[self.format])
