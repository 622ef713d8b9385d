"""Run a model and a changing copy of it side by side, node by node, over all calibration batches.

Every value is computed once: a walk costs one pass of each model, however many nodes ask for statistics. Values are
freed after their last reader; where nothing before a node has changed, both models share one value. What is more than
`RESIDENT` bytes of them lies on disk.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.shelf import Shelf

_PASSING = (aten.dropout.default, aten.alias.default, aten.contiguous.default, aten.clone.default)

RESIDENT = 128 << 20  # bytes of values in memory

Reading = Callable[[fx.Node, fx.Node, Sequence[Any]], "Sequence[Any] | None"]


@dataclass(frozen=True)
class Here:
    """The walk before the changed model runs `node`.

    original, current: the first input of the node in each model, one tensor a batch; the same list where nothing
    changed. wanted: what the node should give in the changed model, one tensor a batch: the original's value, less
    what has gone wrong on the other side of an addition that the node leads to.
    """

    node: fx.Node
    original: Sequence[Tensor]
    current: Sequence[Tensor]
    wanted: Sequence[Tensor]
    drifted: bool  # the input differs
    absorbs: bool  # `wanted` is not the original's value
    joins: bool  # the node leads to an addition only
    arguments: tuple[Sequence[tuple], Sequence[tuple]]  # all positional ones in each model, one tuple a batch


class Lockstep:
    """Iterate over it once: it stops before every node in `stops`, where the caller may assign parameters of `current`."""

    def __init__(
        self,
        original: Model,
        current: Model,
        batches: Sequence[Sequence[Tensor]],
        stops: frozenset[str],
        reading: Reading | None = None,
        holding: frozenset[str] = frozenset(),
    ):
        """reading: what a node in `stops` sees of its first input in the changed model, called with the node, that input and
        its values; None where it sees them as they are, as all others do. holding: names of nodes whose values are `held`."""
        self._original, self._current, self._stops = original, current, stops
        self._batches, self._reading = batches, reading
        self._left: dict[fx.Node, Sequence[Any]] = {}
        self._right: dict[fx.Node, Sequence[Any]] = {}
        self._runners = (fx.Interpreter(original.module), fx.Interpreter(current.module))
        self._holding = holding
        self._shelf: Shelf[Tensor] = Shelf(resident=RESIDENT)
        self.held: tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]]] = ({}, {})
        self.outputs: tuple[list[Any], Sequence[Any]] = ([], [])

    @torch.no_grad()
    def __iter__(self) -> Iterator[Here]:
        last = {source: node for node in self._original.graph.nodes for source in node.all_input_nodes}
        flat = [pytree.tree_leaves(self._original.arguments(batch)) for batch in self._batches]
        placed = 0
        for node in self._original.graph.nodes:
            if node.op == "placeholder":
                self._left[node] = self._right[node] = [leaves[placed] for leaves in flat]
                placed += 1
                continue
            self._left[node] = self._run(node, self._left, self._runners[0], self._original)
            read: dict[fx.Node, Sequence[Any]] = {}
            if node.name in self._stops:
                if self._reading is not None:
                    source = node.all_input_nodes[0]
                    seen = self._reading(node, source, self._right[source])
                    read = {} if seen is None else {source: seen}
                yield self._here(node, read)
            self._right[node] = self._left[node]
            if self._changed(node) or read:
                self._right[node] = self._run(node, {**self._right, **read}, self._runners[1], self._current)
            if node.name in self._holding:
                self.held[0][node.name], self.held[1][node.name] = self._left[node], self._right[node]
            if node.op == "output":
                self.outputs = (self._left[node], self._right[node])
            for source in node.all_input_nodes:
                if last[source] is node:
                    del self._left[source], self._right[source]

    def _run(
        self, node: fx.Node, env: dict[fx.Node, Sequence[Any]], runner: fx.Interpreter, model: Model
    ) -> Sequence[Any]:
        if node.op == "get_attr":
            return [_attribute(model, str(node.target))] * len(self._batches)
        if node.op == "output":
            return [fx.node.map_arg(node.args[0], lambda n: env[n][i]) for i in range(len(self._batches))]  # noqa: B023
        values = _Values(self._shelf)
        for i in range(len(self._batches)):
            deadline.check()
            args = fx.node.map_arg(node.args, lambda n: env[n][i])  # noqa: B023
            kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n][i])  # noqa: B023
            values.append(getattr(runner, node.op)(node.target, args, kwargs), args)
        return values

    def _changed(self, node: fx.Node) -> bool:
        """Whether the changed model gives another value; asked after the caller has had its say."""
        if node.op == "get_attr":
            return self._reassigned(node)
        for source in node.all_input_nodes:
            if source.op == "get_attr" and self._reassigned(source):
                self._right[source] = self._run(source, self._right, self._runners[1], self._current)
        return any(self._right[s] is not self._left[s] for s in node.all_input_nodes)

    def _reassigned(self, node: fx.Node) -> bool:
        ours, theirs = (_attribute(model, str(node.target)) for model in (self._original, self._current))
        if not isinstance(ours, Tensor):
            return False
        return not (ours.shape == theirs.shape and torch.equal(ours, theirs))

    def _here(self, node: fx.Node, read: Mapping[fx.Node, Sequence[Any]]) -> Here:
        source = node.all_input_nodes[0]
        current = read.get(source, self._right[source])
        other = _other_side(node)
        wanted: Sequence[Tensor] = self._left[node]
        if other is not None and other in self._right and self._right[other] is not self._left[other]:
            triples = zip(wanted, self._left[other], self._right[other], strict=True)
            wanted = [_absorbing(y, a, b) for y, a, b in triples]
        drifted = current is not self._left[source]
        absorbs = wanted is not self._left[node]
        both = (self._arguments(node, self._left), self._arguments(node, self._right))
        return Here(node, self._left[source], current, wanted, drifted, absorbs, other is not None, both)

    def _arguments(self, node: fx.Node, env: Mapping[fx.Node, Sequence[Any]]) -> list[tuple]:
        return [fx.node.map_arg(node.args, lambda n: env[n][i]) for i in range(len(self._batches))]  # noqa: B023


class _Values(Sequence[Any]):
    """What a node gave, by batch: tensors of their own on the shelf, for as long as somebody holds this; all else as it is."""

    def __init__(self, shelf: Shelf[Tensor]):
        self._shelf = shelf
        self._kept: list[Any] = []
        self._names: list[str] = []
        self._number = next(_NUMBERS)
        weakref.finalize(self, _take_away, shelf, self._names)

    def append(self, value: Any, arguments: Any) -> None:
        """Views of `arguments` take no memory of their own."""
        self._kept.append(pytree.tree_map(lambda leaf: self._put(leaf, arguments), value))

    def _put(self, leaf: Any, arguments: Any) -> Any:
        if not isinstance(leaf, Tensor) or _shares(leaf, arguments):
            return leaf
        name = f"{self._number}/{len(self._names)}"
        self._shelf[name] = leaf
        self._names.append(name)
        return _OnShelf(name)

    def __getitem__(self, index: Any) -> Any:
        return pytree.tree_map(
            lambda leaf: self._shelf[leaf.name] if isinstance(leaf, _OnShelf) else leaf, self._kept[index]
        )

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class _OnShelf:
    name: str


_NUMBERS = count()


def _take_away(shelf: Shelf[Tensor], names: Sequence[str]) -> None:
    for name in names:
        del shelf[name]


def _shares(value: Tensor, arguments: Any) -> bool:
    held = (each for each in pytree.tree_leaves(arguments) if isinstance(each, Tensor))
    return any(each.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() for each in held)


def _attribute(model: Model, target: str) -> Any:
    owner, _, leaf = target.rpartition(".")
    return getattr(model.module.get_submodule(owner), leaf)


def _absorbing(y: Tensor, before: Tensor, now: Tensor) -> Tensor:
    return y + (before - now) if before.shape == y.shape else y


def _other_side(node: fx.Node) -> fx.Node | None:
    """The other term of the plain addition that `node` alone leads to, if there is one."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target in _PASSING:
            node = user
            continue
        plain = user.target is aten.add.Tensor and not user.kwargs and all(isinstance(a, fx.Node) for a in user.args)
        others = [a for a in user.all_input_nodes if a is not node]
        return others[0] if plain and len(others) == 1 else None
    return None
