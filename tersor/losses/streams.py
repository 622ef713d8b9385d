"""Every residual stream like the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from tersor.errors import InputError
from tersor.loss import Loss, Pairs, Seen

_LEAST = 1e-6  # norm of an activation


@dataclass(frozen=True)
class Streams(Loss):
    """The mean over residual sums of `|h - k|^2 / |k|^2`, h of the student and k of the teacher.

    Of those that both networks have, in the same shape: what was cut inside blocks leaves them as they were, so that each block
    hears at once what it does wrong, not by way of all that follow. A student of fewer blocks has those of its teacher in
    between for one. every: every so manieth, counted from the last. optional: 0 where there are none, which else is an error.
    at: node names, or (student's, teacher's); found where none are given. Source: the hints of Romero et al. 2015,
    arXiv:1412.6550, at every block.
    """

    every: int = 1
    optional: bool = False
    at: tuple[str | tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"The loss streams compares every {self.every}th sum; write 1 or more.")

    @property
    def nodes(self) -> Pairs:
        return tuple((name, name) if isinstance(name, str) else name for name in self.at)

    @property
    def steady(self) -> bool:
        return bool(self.at)

    def placed(self, streams: Callable[[], Pairs]) -> Loss:
        if self.at:
            return self
        found = streams()[:: -self.every]
        if not found and not self.optional:
            raise InputError(
                "The loss streams compares residual streams, and student and teacher have none of the same shape in common; "
                "compare activations with feature(node='...')."
            )
        return replace(self, at=found)

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        if not self.at:
            return next(iter(student.outputs.values())).new_zeros(())
        pairs = [(student.activation(ours), teacher.activation(theirs)) for ours, theirs in self.nodes]
        return torch.stack([_apart(h, k) for h, k in pairs]).mean()


def _apart(h: Tensor, k: Tensor) -> Tensor:
    """By norms, whose gradient lies in memory as `h` does; that of a mean of squares has to be brought into its order."""
    whole = torch.promote_types(h.dtype, torch.float32)
    return (vector_norm(h - k).to(whole) / vector_norm(k).to(whole).clamp_min(_LEAST)).square()
