"""Soft labels with the target class and the others apart: decoupled distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.loss import Loss, Seen, classes


@dataclass(frozen=True)
class DKD(Loss):
    """`T^2 (alpha KL(b_t | b_z) + beta KL(n_t | n_z))`, mean over items.

    b: the probabilities of the target class and of all others together, n: those of the others among themselves, both at
    temperature T. The target is the label, or the teacher's decision where there are no labels. With alpha = 1 and beta =
    1 - p_target of the teacher it is plain `KL`. Source: Zhao et al. 2022, arXiv:2203.08679.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z, t = (seen.scores(self.output) for seen in (student, teacher))
        known = labels.get(self.output) if isinstance(labels, dict) else labels
        target = t.argmax(-1) if known is None else classes(known, z)
        at = F.one_hot(target, z.shape[-1]).bool()
        q, p = ((each / self.temperature).log_softmax(-1) for each in (z, t))
        both = _kl(*(_two(each, at) for each in (p, q)))
        others = _kl(*(each.masked_fill(at, -torch.inf).log_softmax(-1) for each in (p, q)))
        return self.temperature**2 * (self.alpha * both + self.beta * others).mean()


def _two(logp: Tensor, at: Tensor) -> Tensor:
    """(items, 2): log-probabilities of the target and of the rest."""
    return torch.stack([logp[at], logp.masked_fill(at, -torch.inf).logsumexp(-1)], -1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    inside = torch.isfinite(p)
    p, q = torch.where(inside, p, 0.0), torch.where(inside, q, 0.0)
    return (p.exp() * (p - q) * inside).sum(-1)
