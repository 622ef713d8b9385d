"""Weights in few bits behind float arithmetic: codes in the file, dequantised by the runtime where it multiplies.

    MatMul(x, DequantizeLinear(int4 codes, scale of each block of columns))

Standard ONNX (opset 21). ONNX Runtime makes one `MatMulNBits` of the two where codes have 4 bits, OpenVINO a fully connected
layer with compressed weights; other readers unpack. Both want blocks of a power of two, so that a longer run of columns
with one scale is written as several blocks with the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np
import onnx_ir as ir

from tersor.forms.affine import Affine
from tersor.hub.export import Exported
from tersor.hub.lookups import look_up_codes
from tersor.hub.values import constant, drop_unused, flag, initializer, node, plain_product
from tersor.maths.unfold import to_matrix
from tersor.weight import Weight

OPSET = 21  # the first with 4-bit integers and blocks
BLOCKS = (128, 64, 32, 16)  # columns, best first


def store_codes(exported: Exported, weights: Mapping[str, Weight]) -> ir.Model:
    """The model of `exported` with the codes of `weights` in place of its embeddings and the matrices of its linear layers.

    What has no integer codes (tables, floats), and what no linear layer reads as it is, stays float.
    """
    from onnxscript import version_converter

    onnx = exported.onnx.clone()
    version_converter.convert_version(onnx, OPSET, fallback=True)
    graph = onnx.graph
    known = {name: w for name, w in weights.items() if isinstance(w, Affine) and len(w.shape) == 2}
    dense = {name: weight.dense().numpy() for name, weight in known.items()}
    for matrix in list(graph):
        array = constant(matrix.inputs[1]) if matrix.op_type in ("MatMul", "Gemm") else None
        if array is None or array.ndim != 2 or (matrix.op_type == "Gemm" and not plain_product(matrix)):
            continue
        rows = array if matrix.op_type == "Gemm" and flag(matrix, "transB") else array.T
        same = (n for n, d in dense.items() if d.shape == rows.shape and np.array_equal(d, rows))
        name = next(same, None)
        if name is not None:
            _store(graph, matrix, name, known[name])
    look_up_codes(graph, weights)
    drop_unused(graph)
    return onnx


def _store(graph: ir.Graph, matrix: ir.Node, name: str, weight: Affine) -> None:
    """Read the weight from its codes; a Gemm becomes a product and a sum, which is what runtimes recognise."""
    read = _dequantized(graph, matrix, name, weight)
    if matrix.op_type == "MatMul":
        matrix.replace_input_with(1, read)
        return
    out = matrix.outputs[0]
    bias = matrix.inputs[2] if len(matrix.inputs) > 2 else None
    product = node("MatMul", [matrix.inputs[0], read], f"{out.name}_product")
    made = [product]
    if bias is not None:
        made.append(node("Add", [product.outputs[0], bias], f"{out.name}_sum"))
    graph.insert_before(matrix, made)
    fresh = made[-1].outputs[0]
    ir.convenience.replace_all_uses_with(out, fresh, replace_graph_outputs=True)
    graph.remove(matrix, safe=True)
    fresh.name, fresh.shape, fresh.type = out.name, out.shape, out.type  # the network's outputs must say what they are


def _dequantized(graph: ir.Graph, reader: ir.Node, name: str, weight: Affine) -> ir.Value:
    """The DequantizeLinear of the matrix (columns, rows), before `reader`."""
    codes = to_matrix(weight.codes, weight.groups, weight.transposed)[0].numpy().T
    halved = bool(weight.zero.float().frac().any())  # of one bit, whose zero lies between its two codes
    columns = codes.shape[0]
    run = min(weight.run, columns)
    scale = np.broadcast_to(weight.scale.numpy(), (codes.shape[1], weight.scale.shape[1])).T
    zero = np.broadcast_to(weight.zero.float().numpy(), (codes.shape[1], weight.scale.shape[1])).T
    if halved:
        codes, scale, zero = 2 * codes + 1, scale / 2, np.zeros_like(zero)
    shared = gcd(run, columns)  # OpenVINO wants blocks that divide the columns
    block = next((b for b in BLOCKS if shared % b == 0), shared if scale.shape[0] > 1 else 0)
    kind = ir.DataType.INT4 if weight.bits <= 4 else ir.DataType.INT8
    prefix = f"{reader.outputs[0].name}.{name}"
    attributes = [ir.AttrInt64("axis", 0 if block else 1)]
    if block:
        at = np.arange(0, columns, block) // run
        scale, zero = scale[at], zero[at]
        attributes.append(ir.AttrInt64("block_size", block))
    else:
        scale, zero = scale[0], zero[0]
    inputs = [
        _typed(graph, f"{name}_codes", f"{prefix}_codes", np.ascontiguousarray(codes), kind),
        initializer(graph, f"{prefix}_scale", np.ascontiguousarray(scale, np.float32)),
        _typed(graph, f"{prefix}_zero", f"{prefix}_zero", np.ascontiguousarray(zero).astype(np.int8), kind),
    ]
    made = ir.Node("", "DequantizeLinear", inputs, attributes, num_outputs=1, name=f"node_{prefix}_dq")
    made.outputs[0].name = f"{prefix}_dq"
    graph.insert_before(reader, made)
    return made.outputs[0]


def _typed(graph: ir.Graph, name: str, otherwise: str, codes: np.ndarray, kind: ir.DataType) -> ir.Value:
    """Integers in the width of `kind`, under `name`, or under `otherwise` where that is taken."""
    called = otherwise if name in graph.initializers else name
    value = ir.Value(name=called, const_value=ir.Tensor(codes.astype(kind.numpy()), dtype=kind, name=called))
    value.shape, value.type = ir.Shape(codes.shape), ir.TensorType(kind)
    graph.register_initializer(value)
    return value
