"""Soft labels up to shift and scale, within items and within classes: DIST."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class DIST(Loss):
    """`T^2 (beta (1 - mean_i r(p_i, q_i)) + gamma (1 - mean_c r(p_c, q_c)))`, r Pearson's correlation of the teacher's
    and the student's softened probabilities: over the classes of an item, and over the items of a class.

    Needs several items a batch for the second. Source: Huang et al. 2022, arXiv:2205.10536.
    """

    temperature: float = 4.0
    beta: float = 1.0
    gamma: float = 1.0
    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z, t = (seen.scores(self.output) for seen in (student, teacher))
        q, p = ((each / self.temperature).softmax(-1) for each in (z, t))
        within, across = (1 - _correlation(p, q).mean() for p, q in ((p, q), (p.T, q.T)))
        return self.temperature**2 * (self.beta * within + self.gamma * across)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / ((a.square().sum(-1) + 1e-12) * (b.square().sum(-1) + 1e-12)).sqrt()
