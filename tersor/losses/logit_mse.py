"""The outputs themselves: for logits, and for regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class LogitMSE(Loss):
    """`mean (z - t)^2` over all values of an output; the limit of `KL` for a high temperature, where scores are centred.

    relative: divided by the variance of t over the batch, so that the unit of the output does not matter.
    Source: Ba and Caruana 2014, arXiv:1312.6184.
    """

    relative: bool = False
    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z, t = student.output(self.output), teacher.output(self.output)
        error = (z - t).square().mean()
        return error / t.var(correction=0).clamp_min(1e-12) if self.relative else error
