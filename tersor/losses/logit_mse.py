"""The outputs themselves: for logits, and for regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class LogitMSE(Loss):
    """`mean (z - t)^2` over all values of an output; the limit of `KL` for a high temperature, where scores are centred.

    Source: Ba and Caruana 2014, arXiv:1312.6184.
    """

    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        return (student.output(self.output) - teacher.output(self.output)).square().mean()
