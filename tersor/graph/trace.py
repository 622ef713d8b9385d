"""One walk over a graph that labels every axis of every value.

Rules (`rules_*.py`) say what one operator does to the labels; this file carries them from node to node. What no rule
understands is frozen, with the operator's name as the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.graph.arguments import bound, operator_name
from tersor.graph.labels import Axis, Labels, Why
from tersor.graph.model import Model

Axes = tuple[Axis, ...]
Value = Axes | tuple[Axes | None, ...] | None
"""Labels of a tensor, of a tuple of tensors, or None for what is no tensor."""
Args = Mapping[str, Any]
_TRANSPOSES = ("aten.t", "aten.transpose", "aten.permute", "aten.numpy_T", "aten.swapaxes")
SMALL, LARGE = 3, 5  # batch sizes of the two runs; what differs between them follows the batch


class NoRule(Exception):
    """A rule met arguments that it does not understand."""


@dataclass
class Trace:
    """What is known while walking: labels, concrete shapes, and facts that surgery needs."""

    labels: Labels
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    values: dict[fx.Node, Value] = field(default_factory=dict)
    inner: dict[fx.Node, Axis] = field(default_factory=dict)
    """Axes that only a node's settings show: the groups of a convolution, the repeats of an interleave."""
    counted: list[tuple[Axis, str]] = field(default_factory=list)
    roles: dict[tuple[str, int, str], Axis] = field(default_factory=dict)
    """By tensor name, axis and role, in execution order."""

    def axes(self, node: Any) -> Axes:
        """Labels of a node's tensor."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if value is None or not all(isinstance(axis, tuple) and _is_axis(axis) for axis in value):
            raise NoRule
        return value

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The concrete shape of the node's tensor in the small run."""
        return self.small[node.name]

    def symbolic(self, node: fx.Node, axis: int) -> bool:
        """Whether the size of an axis follows the batch."""
        return self.small[node.name][axis] != self.large[node.name][axis]

    def is_tensor(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and self.values.get(node) is not None

    def why(self, node: fx.Node, because: str) -> Why:
        return Why(str(node.target), node.name, because)

    def unify(self, a: Axis, b: Axis, node: fx.Node) -> Axis:
        self.labels.unify(a, b, self.why(node, "ties it to an axis that cannot change"))
        return a

    def freeze(self, axis: Axis, node: fx.Node, because: str) -> None:
        if not self.labels.frozen(axis):
            self.labels.freeze(axis, self.why(node, because))

    def split(self, flat: Axis, shape: Sequence[int], node: fx.Node) -> list[Axis]:
        return self.labels.split(flat, shape, self.why(node, "regroups it in a way that cannot be undone"))

    def still(self, count: int, node: fx.Node, because: str = "has a fixed size there") -> Axis:
        return self.labels.still(count, self.why(node, because))

    def note(self, node: Any, axis: int, role: str) -> None:
        """Remember what a parameter's axis is for, also where the parameter is read transposed."""
        labels = self.axes(node)[axis]
        while isinstance(node, fx.Node) and operator_name(node) in _TRANSPOSES:
            node = node.args[0]
        if isinstance(node, fx.Node) and node.op == "get_attr":
            for at, each in enumerate(self.axes(node)):
                if each is labels:
                    self.roles.setdefault((str(node.target), at, role), each)


Rule = Callable[[Trace, fx.Node, Args], Value]


def flat_axes(value: Value) -> list[Axis]:
    """All axes of a value, which may be a tuple of tensors."""
    if value is None or not value:
        return []
    if value[0] is None or (value[0] and isinstance(value[0][0], tuple)):
        return [axis for axes in value for axis in axes or ()]
    return [axis for axis in value if isinstance(axis, tuple)]


def _is_axis(axis: tuple) -> bool:
    return not axis or isinstance(axis[0], frozenset)


def trace(model: Model, rules: Mapping[str, Rule]) -> Trace:
    """Label every value of the model's graph."""
    walk = Trace(Labels(), _shapes(model, SMALL), _shapes(model, LARGE))
    stored: dict[tuple[int, tuple[int, ...]], Axes] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            shape = walk.small.get(node.name)
            why = Why("", node.name, "is an input of the network")
            walk.values[node] = _still(walk, shape, why) if isinstance(shape, tuple) else None
        elif node.op == "get_attr":
            walk.values[node] = _parameter(walk, model, node, stored)
        elif node.op == "output":
            for each in node.all_input_nodes:
                _freeze_all(walk, each, Why("", each.name, "is an output of the network"))
        else:
            walk.values[node] = _apply(walk, node, rules)
    return walk


def _apply(walk: Trace, node: fx.Node, rules: Mapping[str, Rule]) -> Value:
    if node.target is operator.getitem:
        source = walk.values.get(node.args[0])
        return source[node.args[1]] if source is not None else None
    shape = walk.small.get(node.name)
    if not isinstance(shape, tuple):  # a number: a size or something computed from sizes
        return None
    rule = rules.get(operator_name(node)) or (rules["pointwise"] if _pointwise(node) else None)
    missing = "has no pruning rule"
    if rule is not None:
        try:
            value = rule(walk, node, bound(node))
            if _fits(value, shape):
                return value
        except (NoRule, ValueError):  # or axes that it took for one have other lengths
            pass
        missing = "has no pruning rule for these arguments"
    why = walk.why(node, missing)
    for each in node.all_input_nodes:
        _freeze_all(walk, each, why)
    if shape and not isinstance(shape[0], int):
        return tuple(_still(walk, s, why) if isinstance(s, tuple) else None for s in shape)
    return _still(walk, shape, why)


def _pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def _fits(value: Value, shape: Any) -> bool:
    if value is None:
        return shape is None
    if len(value) != len(shape):
        return False
    if shape and isinstance(shape[0], int):
        return all(isinstance(a, tuple) and len(a) == s for a, s in zip(value, shape, strict=True))
    return all(_fits(v, s) for v, s in zip(value, shape, strict=True) if s is not None)


def _still(walk: Trace, shape: tuple[int, ...], why: Why) -> Axes:
    return tuple(walk.labels.still(size, why) for size in shape)


def _freeze_all(walk: Trace, node: fx.Node, why: Why) -> None:
    value = walk.values.get(node)
    for axes in [value] if value is None or not value or _is_axis(value[0]) else value:
        for axis in axes or ():
            walk.labels.freeze(axis, why)


def _parameter(walk: Trace, model: Model, node: fx.Node, stored: dict) -> Value:
    try:
        tensor = model.tensor(str(node.target))
    except AttributeError:
        return None
    if not isinstance(tensor, Tensor):
        return None
    shape = tuple(tensor.shape)
    key = (tensor.data_ptr(), shape)
    if key not in stored:
        stored[key] = tuple(walk.labels.fresh(size) for size in shape)
    return stored[key]


def _shapes(model: Model, batch: int) -> dict[str, Any]:
    """Shape by node name when run at a batch size: a tuple of ints, a tuple of shapes, or a number."""
    found: dict[str, Any] = {}

    def visit(node: fx.Node, value: Any) -> Any:
        found[node.name] = _shape(value)
        return value

    model.interpret([_resized(t, batch) for t in model.example], visit)
    return found


def _resized(tensor: Any, batch: int) -> Any:
    if not isinstance(tensor, Tensor) or not tensor.ndim:
        return tensor
    return tensor[torch.arange(batch) % len(tensor)]


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple | list):
        return tuple(_shape(v) if isinstance(v, Tensor) else None for v in value)
    return value
