"""One removal under way: which positions of every value stay."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.errors import ModelError
from tersor.graph.dependency import Dependency
from tersor.graph.labels import Axis
from tersor.graph.model import Model
from tersor.graph.trace import LARGE, SMALL, Axes

aten = torch.ops.aten


@dataclass
class Cut:
    """What dies, in `model`, a copy whose nodes are edited; the nodes of the original carry the labels."""

    dependency: Dependency
    dead: frozenset[int]
    model: Model
    _live: dict[Axis, list[int]] = field(default_factory=dict)

    def live(self, axis: Axis) -> list[int]:
        """The positions of `axis` that stay."""
        if axis not in self._live:
            self._live[axis] = self.dependency.live(axis, self.dead)
        return self._live[axis]

    def changed(self, axis: Axis) -> bool:
        return len(self.live(axis)) != len(axis)

    def axes(self, old: fx.Node) -> Axes:
        """Labels of an original node."""
        return self.dependency.walk.axes(old)

    def size(self, old: fx.Node, at: int, new: fx.Node) -> int | fx.Node:
        """How long axis `at` of a value is now; an expression of the batch where the axis follows it."""
        count = len(self.live(self.axes(old)[at]))
        if not self.dependency.walk.symbolic(old, at):
            return count
        return self._batches(old, at, count, new)

    def size_before(self, old: fx.Node, at: int, new: fx.Node) -> fx.Node:
        """How long axis `at` of a value was, as an expression of the batch."""
        return self._batches(old, at, len(self.axes(old)[at]), new)

    def _batches(self, old: fx.Node, at: int, count: int, new: fx.Node) -> fx.Node:
        walk = self.dependency.walk
        if count % SMALL or walk.small[old.name][at] * LARGE != walk.large[old.name][at] * SMALL:
            raise ModelError(
                f"Axis {at} of node {old.name} mixes the batch with channels in a way that no size can express; "
                "leave the groups that reach it whole."
            )
        with new.graph.inserting_before(new):
            batch = new.graph.call_function(aten.sym_size.int, (_batch_input(new.graph), 0))
            return new.graph.call_function(operator.mul, (batch, count // SMALL))


def _batch_input(graph: fx.Graph) -> fx.Node:
    return next(
        node
        for node in graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].ndim
    )


Edit = Callable[[Cut, fx.Node, fx.Node, Mapping[str, Any]], None]
"""`edit(cut, original node, node to edit, its arguments)`: put the constants of one node right."""
