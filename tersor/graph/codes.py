"""Where integer kernels hand codes on to one another, in a graph of ATen operators.

Convolutions read and give codes, linear layers read them, averages do both; sums, concatenations, clips and what only moves
values pass them on. Everything else (norms, GELU, softmax) computes in floats, and a grid before it gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from tersor.graph.operators import aten, matrix_arguments, weight_of

MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.transpose.int,
        aten.permute.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.dropout.default,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.pad.default,
        aten.constant_pad_nd.default,
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
    }
)
ABSORBED = frozenset({aten.relu.default, aten.hardtanh.default, aten.clamp.default})
JOINS = frozenset({aten.add.Tensor, aten.cat.default})
AVERAGES = frozenset(
    {
        aten.mean.dim,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
    }
)


def given_as_codes(node: fx.Node) -> bool:
    """Whether what `node` gives comes, as codes, out of an operator that integer kernels have."""
    while node.target in MOVES:
        node = node.all_input_nodes[0]
    return node.target in ABSORBED | JOINS | AVERAGES or weight_of(node) is not None


def on_grids(graph: fx.Graph, readers: Collection[str]) -> frozenset[str]:
    """The nodes whose values stand on grids when the matrices applied at `readers` are integer kernels."""
    taken: set[fx.Node] = set()
    given: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        sources = node.all_input_nodes
        if node.name in readers or node.target in AVERAGES:
            taken.add(sources[0])
        elif node.target in JOINS and node in taken:
            taken.update(sources)
        elif node.target in MOVES | ABSORBED and node in taken:
            taken.add(sources[0])
        if node.target in AVERAGES or (node.name in readers and _convolves(node)):
            given.add(node)
    for node in graph.nodes:
        if node.target in MOVES | ABSORBED and node.all_input_nodes[0] in given:
            given.add(node)
    return frozenset(node.name for node in taken | given)


def _convolves(node: fx.Node) -> bool:
    found = matrix_arguments(node)
    return found is not None and found[2] is not None
