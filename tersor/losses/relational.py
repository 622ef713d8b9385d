"""How items lie to each other, whatever the space: relational distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class Relational(Loss):
    """Huber loss between the pairwise distances (each divided by their mean) and, `angle` times, between the cosines of
    the angles of all triples of items, of the student's and the teacher's embeddings.

    Embeddings: the activation `node` (`teacher` in the teacher, empty for the same name), or the output where `node` is empty;
    flattened per item, of any width. Cost: items^2 and items^3 numbers. Source: Park et al. 2019, arXiv:1904.05068.
    """

    distance: float = 1.0
    angle: float = 2.0
    node: str = ""
    teacher: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        if min(self.distance, self.angle) < 0 or max(self.distance, self.angle) == 0:
            raise InputError("relational needs a distance or an angle above 0, and none below 0.")

    @property
    def nodes(self) -> tuple[tuple[str, str], ...]:
        return ((self.node, self.teacher or self.node),) if self.node else ()

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        h = student.activation(self.node) if self.node else student.output(self.output)
        k = teacher.activation(self.teacher or self.node) if self.node else teacher.output(self.output)
        h, k = h.flatten(1), k.flatten(1)
        total = h.sum() * 0.0
        if self.distance:
            total = total + self.distance * F.smooth_l1_loss(_distances(h), _distances(k))
        if self.angle:
            total = total + self.angle * F.smooth_l1_loss(_angles(h), _angles(k))
        return total


def _distances(x: Tensor) -> Tensor:
    """(items, items) of (items, width), in units of their mean; a gradient of 0 where two items coincide."""
    squares = (x[:, None] - x[None]).square().sum(-1)
    apart = squares > 0
    found = torch.where(apart, squares, 1.0).sqrt() * apart
    return found / (found.sum() / apart.sum().clamp_min(1)).clamp_min(1e-12)


def _angles(x: Tensor) -> Tensor:
    """(items, items, items): the cosine at item i between the directions to j and k."""
    towards = x[None] - x[:, None]
    unit = towards / (towards.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return unit @ unit.mT
