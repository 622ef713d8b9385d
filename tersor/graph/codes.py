"""Where integer kernels hand codes on to one another, in a graph of ATen operators.

Convolutions read and give codes, linear layers read them, averages do both; sums, concatenations, clips and what only moves
values pass them on. Everything else (norms, GELU, softmax) computes in floats, and a grid before it gains nothing. What leaves
the network, past no further matrix, stays float: nobody reads it as codes, and one grid would be the death of a quiet channel.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from tersor.graph.arguments import MATMUL, operator_name
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


_CONVOLUTIONS = {f"aten.conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)}
_RECURRENT = {"aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"}
_OTHERS = {
    "aten.linear",
    "aten.convolution",
    "aten.addmm",
    "aten.baddbmm",
    "aten.einsum",
    "aten.scaled_dot_product_attention",
}
MIXES = frozenset({*_CONVOLUTIONS, *_RECURRENT, *_OTHERS, *MATMUL})
"""Past them a value is another one."""


def given_as_codes(node: fx.Node) -> bool:
    """Whether what `node` gives comes, as codes, out of an operator that integer kernels have."""
    while node.target in MOVES:
        node = node.all_input_nodes[0]
    return node.target in ABSORBED | JOINS | AVERAGES or weight_of(node) is not None


def leaving(graph: fx.Graph) -> frozenset[fx.Node]:
    """The nodes whose values reach an output past no further matrix, and the output itself."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            found.add(node)
        if node in found and operator_name(node) not in MIXES:
            found.update(node.all_input_nodes)
    return frozenset(found)


def read_as_codes(source: fx.Node, user: fx.Node, readers: Collection[str], leaves: Collection[fx.Node]) -> bool:
    """Whether `user` reads `source`, which stands on a grid, through that grid: where it leaves, not what leaves with it."""
    return source not in leaves or user.name in readers or user not in leaves


def on_grids(graph: fx.Graph, readers: Collection[str]) -> frozenset[str]:
    """The nodes whose values stand on grids when the matrices applied at `readers` are integer kernels."""
    leaves = leaving(graph)
    taken: set[fx.Node] = set()
    given: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        sources = node.all_input_nodes
        if node.name in readers:
            taken.add(sources[0])
        if node.name in readers and _convolves(node) and node not in leaves:
            given.add(node)
        if node in leaves:
            continue
        if node.target in AVERAGES:
            taken.add(sources[0])
            given.add(node)
        elif node.target in JOINS and node in taken:
            taken.update(sources)
        elif node.target in MOVES | ABSORBED and node in taken:
            taken.add(sources[0])
    for node in graph.nodes:
        if node.target in MOVES | ABSORBED and node.all_input_nodes[0] in given and node not in leaves:
            given.add(node)
    return frozenset(node.name for node in taken | given)


def _convolves(node: fx.Node) -> bool:
    found = matrix_arguments(node)
    return found is not None and found[2] is not None
