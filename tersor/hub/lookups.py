"""Embeddings as rows of codes: what is looked up is a row of int8, times the scale of that row.

    Mul(Cast(Gather(codes, ids)), Gather(scales, ids))

Standard operators that every runtime has; nothing unpacks the whole table, in memory or on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from tersor.hub.values import constant, node, shared_initializer
from tersor.hub.weights import Codes, codes_of, same
from tersor.weight import Weight


def look_up_codes(graph: ir.Graph, weights: Mapping[str, Weight]) -> None:
    """Every lookup of rows of a constant that is exactly one of `weights`, with a scale a row, reads its codes instead."""
    for lookup, codes in list(_tables(graph, weights)):
        _look_up(graph, lookup, codes)


def _tables(graph: ir.Graph, weights: Mapping[str, Weight]) -> Iterator[tuple[ir.Node, Codes]]:
    known = [codes for name, weight in weights.items() if (codes := codes_of(name, weight)) is not None]
    known = [codes for codes in known if codes.codes.ndim == 2 and codes.axis == 0]
    for each in graph:
        rows = each.op_type == "Gather" and ("axis" not in each.attributes or each.attributes["axis"].as_int() == 0)
        array = constant(each.inputs[0]) if rows else None
        match = next((codes for codes in known if array is not None and same(codes, array)), None)
        if match is not None:
            yield each, match


def _look_up(graph: ir.Graph, lookup: ir.Node, codes: Codes) -> None:
    name, out, ids = codes.name, lookup.outputs[0], lookup.inputs[1]
    stored = shared_initializer(graph, f"{name}_codes", f"{out.name}.{name}_codes", codes.codes)
    scale = codes.scale.astype(np.float32)[:, None]
    steps = shared_initializer(graph, f"{name}_scale", f"{out.name}.{name}_scale", scale)
    rows = node("Gather", [stored, ids], f"{out.name}_rows", 0)
    scales = node("Gather", [steps, ids], f"{out.name}_scales", 0)
    floats = node("Cast", [rows.outputs[0]], f"{out.name}_floats")
    floats.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    product = node("Mul", [floats.outputs[0], scales.outputs[0]], f"{out.name}_read")
    graph.insert_before(lookup, [rows, scales, floats, product])
    ir.convenience.replace_all_uses_with(out, product.outputs[0], replace_graph_outputs=True)
    graph.remove(lookup, safe=True)
    product.outputs[0].name = out.name
