"""Soft labels: the teacher's whole distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class KL(Loss):
    """`T^2 KL(softmax(t / T) | softmax(z / T))`, mean over items; T^2 keeps gradients as large at every T.

    standardise: both scores are first brought to mean 0 and standard deviation 1 over the classes of each item, so that a
    student need not copy the teacher's scale. probabilities: outputs are that already, and their logarithms the scores.
    Sources: Hinton et al. 2015, arXiv:1503.02531; Sun et al. 2024, arXiv:2403.01427.
    """

    temperature: float = 4.0
    standardise: bool = False
    probabilities: bool = False
    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z, t = (seen.scores(self.output) for seen in (student, teacher))
        if self.probabilities:
            z, t = (each.clamp_min(torch.finfo(each.dtype).tiny).log() for each in (z, t))
        if self.standardise:
            z, t = _standard(z), _standard(t)
        q, p = ((each / self.temperature).log_softmax(-1) for each in (z, t))
        return self.temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


def _standard(z: Tensor) -> Tensor:
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True, correction=0) + 1e-7)
