"""Which ONNX value carries the activation of which graph node.

Three graphs stand between a `Model` and its ONNX file: the model's own, the re-exported program (same operators, other
names), and the program that the exporter decomposed (its names are the names in the file). The first two are matched by
position, the last two by the provenance that `torch.export` keeps.
"""

from __future__ import annotations

import operator

import onnx_ir as ir
from torch import fx
from torch.export import ExportedProgram

from tersor.errors import ExportError
from tersor.graph.model import Model


def value_names(
    model: Model, program: ExportedProgram, decomposed: ExportedProgram | None, onnx: ir.Model
) -> dict[str, str]:
    """ONNX value name by node name of `model.graph`; nodes that the exporter merged away are missing."""
    graph = program.graph if decomposed is None else decomposed.graph
    present = {v.name for node in onnx.graph for v in node.outputs}
    placeholders = model.graph.find_nodes(op="placeholder")
    names = {node.name: name for node, name in zip(placeholders, model.inputs, strict=True)}
    last = {_origin(node): node.name for node in graph.nodes if node.op == "call_function"}
    for mine, again in zip(*_matched(model, program), strict=True):
        value = last.get((again.name, None)) if mine.target is not operator.getitem else last.get(_pick(again))
        if value is not None and value in present:
            names[mine.name] = value
    return names


def _matched(model: Model, program: ExportedProgram) -> tuple[list[fx.Node], list[fx.Node]]:
    first, second = _live_calls(model.graph), _live_calls(program.graph)
    if [n.target for n in first] != [n.target for n in second]:
        raise ExportError(
            f"The model changed while it was exported again ({len(first)} operators before, {len(second)} after), so "
            "its activations cannot be named; export it in float32 or use target eager."
        )
    return first, second


def _live_calls(graph: fx.Graph) -> list[fx.Node]:
    live: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in live and node.op == "call_function"]


def _pick(node: fx.Node) -> tuple[str, object]:
    return node.args[0].name, node.args[1]


def _origin(node: fx.Node) -> tuple[str, object]:
    """The node of the program that `node` came from; a getitem also says which item."""
    came = node.meta.get("from_node") or []
    name = came[-1].name if came else node.name
    return (name, node.args[1]) if node.target is operator.getitem else (name, None)
