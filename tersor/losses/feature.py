"""An inner activation like the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class Feature(Loss):
    """`mean (P h - k)^2 / mean k^2`, h and k the activations `node` of the student and `teacher` of the teacher.

    Both are (items, channels, ...) for images, (items, ..., channels) for rank 3 and below. P is learned, a matrix from the
    student's channels to the teacher's, where they differ in number; else there is none. teacher: empty for the same name.
    Source: Romero et al. 2015, arXiv:1412.6550.
    """

    node: str
    teacher: str = ""

    @property
    def nodes(self) -> tuple[tuple[str, str], ...]:
        return ((self.node, self.teacher or self.node),)

    def learned(self, student: Seen, teacher: Seen) -> nn.Module | None:
        h, k = self._rows(student, teacher)
        if h.shape[-1] == k.shape[-1]:
            return None
        projection = nn.Linear(h.shape[-1], k.shape[-1], bias=False)
        with torch.no_grad():  # the best there is to begin with, which needs no random numbers
            solved = torch.linalg.lstsq(h.double().cpu(), k.double().cpu(), driver="gelsd").solution
            projection.weight.copy_(solved.T)
        return projection

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        h, k = self._rows(student, teacher)
        if isinstance(learned, nn.Linear):
            h = learned(h)
        return (h - k).square().mean() / k.square().mean().clamp_min(1e-12)

    def _rows(self, student: Seen, teacher: Seen) -> tuple[Tensor, Tensor]:
        h, k = student.activation(self.node), teacher.activation(self.teacher or self.node)
        rows = [x.movedim(1, -1).flatten(0, -2) if x.ndim > 3 else x.flatten(0, -2) for x in (h, k)]
        if len(rows[0]) != len(rows[1]):
            raise InputError(
                f"The activations {self.node!r} of the student, {tuple(h.shape)}, and {self.teacher or self.node!r} of the "
                f"teacher, {tuple(k.shape)}, have different places; compare activations of the same resolution."
            )
        return rows[0], rows[1]
