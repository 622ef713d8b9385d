"""Fewer operators for the same values: at batch 1 each one costs more to call than to compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tersor.hub.values import constant, drop_unused, initializer


def merge_slices(graph: ir.Graph) -> None:
    """One Slice for two in a row along different axes (the tracer writes one for each axis)."""
    for second in list(graph):
        first = second.inputs[0].producer() if second.op_type == "Slice" and second.inputs[0] is not None else None
        if first is not None and first.op_type == "Slice" and _only_reader(first):
            parts = [(_settings(first)), (_settings(second))]
            if None not in parts and not set(parts[0][2]) & set(parts[1][2]):
                merged = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
                for index, array in enumerate(merged, start=1):
                    name = f"{second.outputs[0].name}.slice_{index}"
                    _set_input(second, index, initializer(graph, name, array))
                second.replace_input_with(0, first.inputs[0])
                graph.remove(first, safe=True)
    drop_unused(graph)


def _only_reader(node: ir.Node) -> bool:
    out = node.outputs[0]
    return len(list(out.uses())) == 1 and not out.is_graph_output()


def _settings(node: ir.Node) -> tuple[np.ndarray, ...] | None:
    """(starts, ends, axes, steps) of a Slice where all are known and no axis counts from the end."""
    given = [constant(v) for v in (*node.inputs[1:], None, None)[:4]]
    starts, ends = given[0], given[1]
    if (
        starts is None
        or ends is None
        or any(v is not None and c is None for v, c in zip(node.inputs[1:], given, strict=False))
    ):
        return None
    axes = np.arange(len(starts)) if given[2] is None else given[2]
    steps = np.ones(len(starts)) if given[3] is None else given[3]
    if (axes < 0).any():
        return None
    return tuple(np.asarray(part, np.int64) for part in (starts, ends, axes, steps))


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    while len(node.inputs) <= index:
        node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(index, value)
