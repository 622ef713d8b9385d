"""Where Q/DQ pairs go. The rule is one; a target chooses its flags.

An activation gets a pair when an integer kernel wants it on a grid: the input of each matrix whose weight is stored in
integers, the output of each convolution (past the ReLU or clip that kernels absorb), input and output of each average. The
output of other matrices, both inputs of each add and every part of a concat (unless one of them is the same for all inputs)
get one where codes go on from there to such a kernel. What leaves the network past no further matrix stays float, and only who
goes on from there to a kernel reads it through a grid. Before a norm, a GELU or a softmax, which are float, a grid would gain
nothing, and cost the most: residual streams of transformers have a few channels a hundred times as large as the others.
Operators that only move values (slice, pad, reshape, max pool) take the grid of what they move, before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersor.hub.values import constant

if TYPE_CHECKING:  # loading needs no onnx_ir, which takes a second to import
    import onnx_ir as ir

MATRICES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MIXES = (
    *MATRICES,
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "Einsum",
    "LSTM",
    "GRU",
    "RNN",
    "Attention",
)
AVERAGES = ("ReduceMean", "AveragePool", "GlobalAveragePool")
MOVES = ("Slice", "Pad", "Reshape", "Transpose", "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Split", "Identity")
ABSORBED = ("Relu", "Clip")
JOINS = ("Add", "Concat")


@dataclass(frozen=True)
class Placement:
    """A target's choices.

    signed: activation codes are int8 instead of uint8 (u8 is what VNNI kernels want).
    averages: averages run on grids on both sides.
    dynamic: linear layers may have their grids made at run time.
    padded_zero: moving operators that pad channels may carry a grid whose zero is not code 0.
    sequences: sums and averages over what has three dimensions may read it through a grid.
    """

    signed: bool = False
    averages: bool = True
    dynamic: bool = False
    padded_zero: bool = True
    sequences: bool = True


def wanted(
    graph: ir.Graph, integer: Collection[ir.Node], placement: Placement, fed: Callable[[ir.Value], bool]
) -> list[ir.Value]:
    """Values to read through a grid, in execution order: `integer` matrices want them, and `fed` says who has one."""
    found: dict[ir.Value, None] = {}
    leaves = leaving(graph)
    taken = _taken_as_codes(graph, integer, placement, leaves)
    reached = set(graph.inputs)  # by what the model is given
    for node in graph:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
        values = _wanted_by(node, node in integer, placement, reached, taken, leaves)
        # A sum or a concat of which one part stays float is computed in float: no grid helps it.
        joins = node.op_type in JOINS and not all(fed(v) for v in values)
        for value in values:
            if fed(value) and not joins:
                found.setdefault(value)
    return list(found)


def leaving(graph: ir.Graph) -> set[ir.Value]:
    """The values that reach an output past no further matrix, outputs included."""
    found = set(graph.outputs)
    for node in reversed(graph):
        if node.op_type not in MIXES and any(out in found for out in node.outputs):
            found.update(value for value in node.inputs if value is not None)
    return found


def reads_codes(node: ir.Node, value: ir.Value, integer: Collection[ir.Node], leaves: Collection[ir.Value]) -> bool:
    """Whether `node` reads `value` through its grid: where that leaves the network, not what leaves with it."""
    return value not in leaves or node in integer or not any(out in leaves for out in node.outputs)


def _wanted_by(
    node: ir.Node,
    integer: bool,
    placement: Placement,
    reached: Collection[ir.Value],
    taken: Collection[ir.Value],
    leaves: Collection[ir.Value],
) -> list[ir.Value]:
    first, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if integer and first is not None:
        after = after_activation(out)
        given = "Conv" in node.op_type or after in taken
        return [first, after] if given and after not in leaves else [first]
    if out in leaves:
        return []
    if node.op_type in JOINS:
        parts = [v for v in node.inputs if v is not None]
        return parts if out in taken and all(v in reached for v in parts) else []
    return [first, out] if first is not None and _averages_codes(node, placement) else []


def _taken_as_codes(
    graph: ir.Graph, integer: Collection[ir.Node], placement: Placement, leaves: Collection[ir.Value]
) -> set[ir.Value]:
    """What an integer kernel reads, directly or past operators that hand codes on."""
    taken: set[ir.Value | None] = set()
    for node in reversed(graph):
        floats = any(out in leaves for out in node.outputs)
        if node in integer or (_averages_codes(node, placement) and not floats):
            taken.update(node.inputs[:1])
        elif not floats and node.op_type in (*JOINS, *MOVES, *ABSORBED) and any(out in taken for out in node.outputs):
            taken.update(node.inputs if node.op_type in JOINS else node.inputs[:1])
    return {value for value in taken if value is not None}


def _averages_codes(node: ir.Node, placement: Placement) -> bool:
    return node.op_type in AVERAGES and placement.averages and (placement.sequences or not sums_a_sequence(node))


def sums_a_sequence(node: ir.Node) -> bool:
    """True for a sum or average over what has three dimensions, or who knows how many."""
    if node.op_type not in ("ReduceMean", "ReduceSum") or node.inputs[0] is None:
        return False
    shape = node.inputs[0].shape
    return shape is None or len(shape) == 3


def after_activation(value: ir.Value) -> ir.Value:
    """`value`, or what a ReLU or clip makes of it when that is all that reads it."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in ABSORBED and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def moved_from(value: ir.Value) -> ir.Value | None:
    """What `value` is a rearrangement of, one step back; None where it is computed."""
    node = value.producer()
    if node is None or node.op_type not in MOVES:
        return None
    if node.op_type == "Pad" and not _pads_zero(node):
        return None
    return node.inputs[0]


def pads_channels(node: ir.Node | None) -> bool:
    """True for a Pad that adds channels (axis 1), or whose widths are not known."""
    if node is None or node.op_type != "Pad":
        return False
    widths = constant(node.inputs[1])
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    if widths is None:
        return True
    count = len(widths) // 2
    along = [int(a) for a in axes] if axes is not None else list(range(count))
    return any(widths[i] or widths[i + count] for i, axis in enumerate(along) if axis == 1)


def _pads_zero(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return True
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is None:
        return True
    value = constant(fill)
    return value is not None and float(value.reshape(-1)[0]) == 0.0
