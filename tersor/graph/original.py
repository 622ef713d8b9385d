"""The module as its owner brought it, called with flat inputs: what the captured graph is compared with and scored against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.graph.state import undisturbed


@dataclass(frozen=True)
class Limit:
    """A condition on the batch size that tracing took for granted, and the line that asked for it."""

    holds: Callable[[int], bool]
    line: str


@dataclass(frozen=True)
class Original:
    """Flat input tensors in, flat output tensors out, as `Model.run`: but what runs is the user's module.

    It gets copies of its inputs and computes in evaluation mode; it is left as it was, its buffers and counters too. An
    output that is None is no output.
    """

    module: nn.Module
    structure: pytree.TreeSpec
    fixed: tuple[bool, ...]
    """Which leaves of the structure are None."""
    limits: tuple[Limit, ...] = field(default=(), compare=False)

    def __call__(self, *flat: Tensor) -> tuple[Tensor, ...]:
        with undisturbed(self.module):
            return self.again(*flat)

    def again(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """The same without putting the module back, for who does that."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.raw(*flat)) if leaf is not None)

    @torch.no_grad()
    def raw(self, *flat: Tensor) -> Any:
        """The outputs in the user's structure."""
        deadline.check()
        return self.call(tuple(tensor.detach().clone() for tensor in flat))

    def call(self, flat: Sequence[Tensor]) -> Any:
        """What the module returns for these very tensors."""
        args, kwargs = self.arguments(flat)
        return self.module(*args, **kwargs)

    def arguments(self, flat: Sequence[Tensor]) -> tuple[tuple, dict]:
        """The flat inputs as the user's (args, kwargs)."""
        rest = iter(flat)
        leaves = [None if fixed else next(rest) for fixed in self.fixed]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return args, kwargs
