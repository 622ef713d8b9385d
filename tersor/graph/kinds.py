"""What the blocks of a prunable axis are: channels, neurons, heads, the width inside heads, the residual width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Any

from torch import fx

from tersor.graph.arguments import MATMUL, bound, factors, operator_name
from tersor.graph.codes import MIXES
from tersor.graph.labels import Axis
from tersor.graph.rules_matrix import subscripts
from tersor.graph.trace import NoRule, Trace

KINDS = ("heads", "residual", "head_width", "channels", "neurons")
_SUMS = ("aten.add", "aten.sub")
_ORIGINS = MIXES | {"aten.embedding"}


def kinds(walk: Trace) -> dict[str, frozenset[int]]:
    """The variables whose kind shows in what is done with them; all others are plain outputs of a layer.

    heads: products of two activations go on side by side for each. head_width: such a product sums over it or gives it.
    residual: a branch is added over it to a stream, so that the two come out of different matrices. What is put together of
    parts of one matrix (rotary positions), or of two by a gate of a third, is no stream.
    """
    found: dict[str, set[int]] = {"heads": set(), "residual": set(), "head_width": set()}
    activations: set[fx.Node] = set()  # what is computed from the inputs, not from parameters alone
    origins: dict[fx.Node, int] = {}  # a bit for each matrix, past no other, that a value comes out of
    for place, node in enumerate(walk.values):
        given = (origins.get(source, 0) for source in node.all_input_nodes)
        origins[node] = 1 << place if operator_name(node) in _ORIGINS else reduce(or_, given, 0)
        if node.op == "placeholder" or not activations.isdisjoint(node.all_input_nodes):
            activations.add(node)
        if node.op == "call_function":
            try:
                for kind, axis in _shown(walk, node, activations, origins):
                    found[kind] |= _variables(walk, axis)
            except NoRule:  # a value without labels: nothing there can be pruned
                continue
    return {kind: frozenset(variables) for kind, variables in found.items()}


def _shown(
    walk: Trace, node: fx.Node, activations: set[fx.Node], origins: Mapping[fx.Node, int]
) -> Iterator[tuple[str, Axis]]:
    """The axes of which this node tells the kind."""
    name, a = operator_name(node), bound(node)
    if name == "aten.scaled_dot_product_attention":
        for each in ("query", "key", "value"):
            *_, width = axes = walk.axes(a[each])
            yield "head_width", width
            yield from (("heads", axis) for axis in axes[:-2])
    elif name in MATMUL and activations.issuperset(factors(a)):
        *side_by_side, _, width = walk.axes(node)
        yield from (("head_width", axis) for axis in (walk.axes(factors(a)[0])[-1], width))
        yield from (("heads", axis) for axis in side_by_side)
    elif name == "aten.einsum":
        yield from _einsum(walk, a, activations)
    elif name in _SUMS and activations.issuperset((a["self"], a["other"])):
        if origins[a["self"]] & origins[a["other"]]:
            return
        there = frozenset[int]().union(*(_variables(walk, axis) for axis in walk.axes(a["other"])))
        for axis in walk.axes(a["self"]):
            yield "residual", tuple(label for label in set(axis) if walk.labels.normal(label) & there)


def _einsum(walk: Trace, a: dict[str, Any], activations: set[fx.Node]) -> Iterator[tuple[str, Axis]]:
    operands, output = subscripts(a)
    if len(operands) == 2 and activations.issuperset(each for _, each in operands):
        shared = set(operands[0][0]) & set(operands[1][0]) & set(output)
        for letters, each in operands:
            for letter, axis in zip(letters, walk.axes(each), strict=True):
                yield "heads" if letter in shared else "head_width", axis


def _variables(walk: Trace, axis: Axis) -> frozenset[int]:
    return frozenset(v for label in set(axis) for v in walk.labels.normal(label))
