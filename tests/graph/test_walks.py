"""Walks over graphs visit each node once: there are 2^60 ways through sixty gates in a row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.graph.branches import branches, without
from tersor.graph.computed import settle
from tersor.graph.dependency import analyse
from tersor.graph.labels import Labels
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.rewrites.shrink import shrink
from tersor.site import groups

DEPTH = 60
WIDTH = 6
STEPS = 40  # reads of a node's inputs that a walk may take for each node
Layer = Callable[[fx.Graph, fx.Node, Callable[[fx.Node], fx.Node]], fx.Node]


def gate(graph: fx.Graph, y: fx.Node, linear: Callable[[fx.Node], fx.Node]) -> fx.Node:
    return linear(graph.call_function(aten.mul.Tensor, (y, graph.call_function(aten.sigmoid.default, (y,)))))


def written_norm(graph: fx.Graph, y: fx.Node, linear: Callable[[fx.Node], fx.Node]) -> fx.Node:
    mean = graph.call_function(aten.mean.dim, (y, [-1], True))
    off = graph.call_function(aten.sub.Tensor, (y, mean))
    square = graph.call_function(aten.mul.Tensor, (off, off))
    variance = graph.call_function(aten.mean.dim, (square, [-1], True))
    return linear(graph.call_function(aten.div.Tensor, (off, graph.call_function(aten.sqrt.default, (variance,)))))


def ladder(graph: fx.Graph, y: fx.Node, linear: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """A residual stream which is gated again and again."""
    return graph.call_function(aten.add.Tensor, (y, gate(graph, y, linear)))


def twice(graph: fx.Graph, y: fx.Node, linear: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """A sum whose two sides both have a matrix."""
    return graph.call_function(aten.add.Tensor, (linear(y), linear(graph.call_function(aten.tanh.default, (y,)))))


def chain(layer: Layer, depth: int = DEPTH) -> Model:
    """`x + f(... f(f(x)))` as a captured model, without the cost of a capture."""
    root, graph = nn.Module(), fx.Graph()
    x = y = graph.placeholder("x")

    def linear(read: fx.Node) -> fx.Node:
        name = f"layer{len(root._parameters)}"
        root.register_parameter(name, nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False))
        weight = graph.get_attr(name)
        weight.meta["val"] = root.get_parameter(name)
        return graph.call_function(aten.linear.default, (read, weight))

    for _ in range(depth):
        y = layer(graph, y, linear)
    graph.output(graph.call_function(aten.add.Tensor, (x, y)))
    module = fx.GraphModule(root, graph)
    example = torch.randn(2, WIDTH)
    for node in graph.nodes:
        node.meta["val"] = example if node.op in ("placeholder", "call_function") else node.meta.get("val")
    return Model(module, (example,), ("x",), ("output",), pytree.tree_flatten(((example,), {}))[1])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called with a number: from then on a node's inputs may be read so often."""
    left = [10**9]
    inputs = fx.Node.all_input_nodes

    def reading(node: fx.Node) -> list[fx.Node]:
        left[0] -= 1
        assert left[0] > 0, "the walk visits nodes again and again"
        return inputs.fget(node)

    def allow(steps: int) -> None:
        left[0] = steps

    monkeypatch.setattr(fx.Node, "all_input_nodes", property(reading))
    return allow


@pytest.mark.parametrize("layer", [gate, written_norm, ladder, twice])
def test_a_walk_visits_each_node_once(layer: Layer, counted: Callable[[int], None]):
    model = chain(layer)
    nodes = len(model.graph.nodes)
    counted(STEPS * nodes)
    found = branches(model)
    assert found
    counted(2 * STEPS * nodes)
    without(model, [found[-1].name])
    counted(STEPS * nodes)
    settle(model.copy().module)
    counted(STEPS * nodes)
    dependency = analyse(model)
    groups(model, dependency)


def test_a_long_row_of_gates_is_one_branch(counted: Callable[[int], None]):
    model = chain(gate)
    counted(3 * STEPS * len(model.graph.nodes))
    (found,) = branches(model)
    assert len(found.matrices) == DEPTH
    small = without(model, [found.name])
    torch.testing.assert_close(small.run(*model.example)[0], model.example[0])


def test_a_row_of_gates_is_narrowed():
    model = chain(gate, 8)
    group = next(g for g in groups(model) if g.refused is None)
    small = shrink(model, {group.name: range(group.blocks - 1)})
    assert small.run(*model.example)[0].shape == (2, WIDTH)


def test_definitions_with_shared_parts_are_followed_once(monkeypatch: pytest.MonkeyPatch):
    labels = Labels()
    axes = [labels.fresh(2) for _ in range(DEPTH)]
    for above, below in pairwise(axes):
        for label in above:
            labels._define(min(label), frozenset().union(*below))
    steps, find = [0], Labels.find

    def finding(self: Labels, variable: int) -> int:
        steps[0] += 1
        assert steps[0] < 10 * DEPTH, "the walk follows every way through the definitions"
        return find(self, variable)

    monkeypatch.setattr(Labels, "find", finding)
    assert labels.normal(axes[0][0]) == frozenset().union(*axes[-1])


def test_the_values_of_a_branch_do_not_matter():
    """The chain computes what it says."""
    model = chain(ladder, 2)
    (x,) = model.example
    y: Tensor = x
    for i in range(2):
        y = y + torch.nn.functional.linear(y * y.sigmoid(), model.tensor(f"layer{i}"))
    torch.testing.assert_close(model.run(x)[0], x + y)
