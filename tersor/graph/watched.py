"""The real numbers by which a model is judged: its outputs, and what stands before a decision.

A class (`argmax`), a flag (`y > 0`) or a rounded value has no gradient, and two of them are equal until they suddenly differ:
by them nothing that leads there would seem to matter. What counts instead are the last real numbers before each decision,
unless an output tells of them as well.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.graph.arguments import bound, operator_name
from tersor.graph.model import Model
from tersor.graph.operators import aten

_STEPS = ("Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn")  # what autograd calls functions whose derivative is zero
_CHOICES = ("aten.argmax", "aten.topk", "aten.sort", "aten.argsort", "aten.max")
"""What picks classes by their scores; other decisions are about each value alone."""


@dataclass(frozen=True)
class Watched:
    """The value of `node`; scores: read as an output would be, else every number counts alone."""

    node: str
    scores: bool = True

    def of(self, value: Tensor) -> Tensor:
        return value if self.scores else value[..., None]


@dataclass(frozen=True)
class Watch:
    """places: what to look at in place of the outputs of a model; None where they tell all. through: the nodes that only detach
    a value, past which gradients must go to reach some layer at all."""

    places: tuple[Watched, ...] | None = None
    through: frozenset[str] = frozenset()


OUTPUTS = Watch()


def watched(model: Model) -> Watch:
    """Where to look at `model`. Cost: a pass of the example, two where something is detached."""
    through: frozenset[str] = frozenset()
    while True:
        real = _Real(model, through)
        real.run(*pytree.tree_leaves(model.arguments(model.example)))
        outputs, decided = _decided(model, real)
        hidden = {user.name for node in decided for user in node.users if user.target is aten.detach.default}
        if not hidden:
            break
        through |= hidden
    if not decided:
        return Watch(None, through)
    scored = (all(_chooses(user, node) for user in node.users) for node in decided)
    places = (Watched(node.name, scores) for node, scores in zip(decided, scored, strict=True))
    return Watch((*(Watched(node.name) for node in outputs), *places), through)


def judged(model: Model, flat: Sequence[Tensor], watch: Watch) -> tuple[Tensor, ...]:
    """What `model` gives at the places of `watch`; its outputs where there are none."""
    if watch.places is None:
        return model.run(*flat)
    found: dict[str, Tensor] = {}
    names = {place.node for place in watch.places}

    def visit(node: fx.Node, value: Any) -> Any:
        if node.name in names:
            found[node.name] = value
        return value

    model.interpret(flat, visit)
    return tuple(place.of(found[place.node]) for place in watch.places)


def _decided(model: Model, real: _Real) -> tuple[list[fx.Node], list[fx.Node]]:
    """The outputs that are real, and the last real numbers before each decision that tells something else; in order."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    outputs = [node for node in output.all_input_nodes if node in real.nodes]
    live, smooth = _before(output), real.nodes | real.several.keys()
    covered = set(outputs)
    for node in reversed(model.graph.nodes):
        if node in smooth and not covered.isdisjoint(node.users):
            covered.add(node)
    told, decided = _told_by(covered, real), []
    for node in reversed(model.graph.nodes):
        if node not in smooth & live or node in covered:
            continue
        if not covered.isdisjoint(node.users):
            covered.add(node)
        elif node in real.reached & real.nodes - told:
            covered.add(node)
            decided.append(node)
    return outputs, decided[::-1]


def _told_by(covered: set[fx.Node], real: _Real) -> set[fx.Node]:
    """What is computed from covered values alone, without parameters of its own."""
    told = set(covered)
    for node in real.module.graph.nodes:
        sources = node.all_input_nodes
        own = any(source.op == "get_attr" and source in real.nodes for source in sources)
        known = [source in told for source in sources if source in real.reached]
        if node.op == "call_function" and known and all(known) and not own:
            told.add(node)
    return told


class _Real(fx.Interpreter):
    """Finds what has a gradient: `nodes` whose tensors depend smoothly on parameters, `several` of which one part does, and
    what is `reached` by the inputs of the network."""

    def __init__(self, model: Model, through: frozenset[str]):
        super().__init__(model.module)
        self._through = through
        self.nodes: set[fx.Node] = set()
        self.several: dict[fx.Node, list[bool]] = {}
        self.reached: set[fx.Node] = set()

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder" or not self.reached.isdisjoint(n.all_input_nodes):
            self.reached.add(n)
        if n.op != "call_function" or n.target is operator.getitem or n.target is aten.detach.default:
            value = super().run_node(n)
            if self._passes_on(n, value):
                self.nodes.add(n)
            return value
        known: dict[fx.Node, Any] = {source: self.env[source] for source in n.all_input_nodes}
        for source in known:
            if source in self.nodes:
                known[source] = known[source].detach().requires_grad_()
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), known.__getitem__)
        with torch.enable_grad():
            value = n.target(*args, **kwargs)
        steps = bound(n).get("rounding_mode") is not None
        if isinstance(value, Tensor):
            if _smooth(value) and not steps:
                self.nodes.add(n)
            return value.detach()
        if isinstance(value, tuple | list):
            self.several[n] = [isinstance(part, Tensor) and _smooth(part) for part in value]
            return type(value)(part.detach() if isinstance(part, Tensor) else part for part in value)
        return value

    def _passes_on(self, n: fx.Node, value: Any) -> bool:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return False
        if n.op == "get_attr":
            return isinstance(value, nn.Parameter)
        if n.target is operator.getitem:
            return self.several.get(n.args[0], {n.args[1]: False})[n.args[1]]
        return n.name in self._through and n.args[0] in self.nodes


def _smooth(value: Tensor) -> bool:
    name = value.grad_fn.name() if value.grad_fn is not None else ""
    return value.requires_grad and not name.startswith(_STEPS) and "NotImplemented" not in name


def _before(node: fx.Node) -> set[fx.Node]:
    """`node` and all that it is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _chooses(node: fx.Node, scores: fx.Node) -> bool:
    """Whether `node` picks along the last axis."""
    if node.op == "output":
        return True
    name, a = operator_name(node), bound(node)
    rank = scores.meta["val"].ndim if "val" in scores.meta else 0
    return name in _CHOICES and a.get("dim") in (-1, rank - 1)
