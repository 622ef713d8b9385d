"""Linear layers whose input gets its grid at run time.

    x -> DynamicQuantizeLinear -> MatMulInteger(., int8 weight) -> Cast -> * (x_scale * w_scale) -> + bias

ONNX Runtime runs all of it as one DynamicQuantizeMatMul; where several matrices read x, as one DynamicQuantizeLinear and
a MatMulIntegerToFloat each. The fused node keeps the name of MatMulInteger.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tersor.hub.values import flag, initializer, node, plain_product, shared_initializer
from tersor.hub.weights import Codes

LINEARS = ("Gemm", "MatMul")


def can_feed(matrix: ir.Node) -> bool:
    """Whether `matrix` is a product that MatMulInteger can take the place of."""
    return matrix.op_type in LINEARS and plain_product(matrix)


def feed_at_run_time(graph: ir.Graph, matrix: ir.Node, codes: Codes) -> None:
    """Replace `matrix` by its integer form; its output keeps its name."""
    out, name = matrix.outputs[0], f"{matrix.outputs[0].name}.{codes.name}"
    columns = codes.transposed() if flag(matrix, "transB") else codes  # MatMulInteger wants (inputs, outputs)
    quantised, x_scale, x_zero = _quantised(graph, matrix.inputs[0])
    weight = shared_initializer(graph, f"{codes.name}_codes", f"{name}_codes", columns.codes)
    w_scale = initializer(graph, f"{name}_scale", columns.scale.astype(np.float32))
    product = node("MatMulInteger", [quantised, weight, x_zero], f"{name}_sums")
    product.name = matrix.name
    cast = ir.Node("", "Cast", product.outputs, [ir.AttrInt64("to", ir.DataType.FLOAT)], name=f"node_{name}_cast")
    cast.outputs[0].name = f"{name}_cast"
    step = node("Mul", [x_scale, w_scale], f"{name}_step")
    made = [product, cast, step, node("Mul", [cast.outputs[0], step.outputs[0]], f"{name}_real")]
    bias = matrix.inputs[2] if len(matrix.inputs) > 2 else None
    if bias is not None:
        made.append(node("Add", [made[-1].outputs[0], bias], f"{name}_biased"))
    ir.convenience.replace_nodes_and_values(graph, matrix, [matrix], made, [out], [made[-1].outputs[0]])


def _quantised(graph: ir.Graph, x: ir.Value) -> tuple[ir.Value, ...]:
    """(codes, scale, zero) of `x`, made once for all matrices that read it."""
    there = next((use.node for use in x.uses() if use.node.op_type == "DynamicQuantizeLinear"), None)
    if there is not None:
        return tuple(there.outputs)
    made = ir.Node("", "DynamicQuantizeLinear", [x], num_outputs=3, name=f"node_{x.name}_dynamic")
    for value, part in zip(made.outputs, ("q", "scale", "zero"), strict=True):
        value.name = f"{x.name}_dynamic_{part}"
    producer = x.producer()
    if producer is None:
        graph.insert_before(graph[0], made)
    else:
        graph.insert_after(producer, made)
    return tuple(made.outputs)
