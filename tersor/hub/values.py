"""Small tools on onnx-ir graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # loading needs no onnx_ir, which takes a second to import
    import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initialiser, a Constant node, or the Transpose of one (of a weight that is tied to another).

    None where the value depends on an input.
    """
    if value is None or value.is_graph_input():
        return None
    from onnx_ir.convenience import get_const_tensor

    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        array = constant(producer.inputs[0])
        order = producer.attributes["perm"].as_ints() if "perm" in producer.attributes else None
        return None if array is None else np.ascontiguousarray(array.transpose(order))
    tensor = value.const_value if value.const_value is not None else get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register `array` under `name`."""
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def shared_initializer(graph: ir.Graph, name: str, otherwise: str, array: np.ndarray) -> ir.Value:
    """`array` under `name`, once for all who bring the same; under `otherwise` where another array has that name."""
    stored = graph.initializers.get(name)
    if stored is None:
        return initializer(graph, name, array)
    return stored if np.array_equal(constant(stored), array) else initializer(graph, otherwise, array)


def plain_product(matrix: ir.Node) -> bool:
    """True for a matrix that scales nothing and does not transpose what it reads."""
    scales = [matrix.attributes[a].as_float() for a in ("alpha", "beta") if a in matrix.attributes]
    return all(s == 1.0 for s in scales) and not flag(matrix, "transA")


def flag(node: ir.Node, name: str) -> bool:
    """A yes-or-no attribute, which ONNX writes as 0 or 1; absent means no."""
    return name in node.attributes and bool(node.attributes[name].as_int())


def node(kind: str, inputs: Sequence[ir.Value | None], name: str, axis: int | None = None) -> ir.Node:
    """One node of the default domain whose single output is called `name`."""
    import onnx_ir as ir

    attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
    made = ir.Node("", kind, list(inputs), attributes, num_outputs=1, name=f"node_{name}")
    made.outputs[0].name = name
    return made


def drop_unused(graph: ir.Graph) -> None:
    """Forget nodes and initialisers that nothing reads."""
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
