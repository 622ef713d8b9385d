"""Which matrices of a hub file were prepared for integers, and why the others were not."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tersor.hub.placement import MATRICES, after_activation
from tersor.hub.values import constant

if TYPE_CHECKING:  # loading needs no onnx_ir, which takes a second to import
    import onnx_ir as ir


def matrix_names(graph: ir.Graph) -> dict[str, str]:
    """The user's name of each matrix (its weight's name without `.weight`) by every label a runtime may give its node.

    Runtimes call a fused node after the ONNX node or after the value that it now computes.
    """
    names: dict[str, str] = {}
    for node in graph:
        if node.op_type in (*MATRICES, "MatMulInteger"):
            out = node.outputs[0]
            for label in (node.name, out.name, after_activation(out).name):
                names[str(label)] = _user_name(node)
    return names


def reasons(graph: ir.Graph) -> dict[str, str]:
    """Why a matrix of `graph` cannot run in integers, by the user's name; empty where nothing is in the way."""
    prepared = any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in graph)
    return {
        _user_name(node): _reason(node) if prepared else "the file was exported in floating point"
        for node in graph
        if node.op_type in MATRICES
    }


def label_of(name: str, labels: Collection[str]) -> str:
    """The label behind a runtime's node name, which may have grown a suffix; the name itself where none fits."""
    fitting = [known for known in labels if name == known or name.startswith((f"{known}_", f"{known}/", f"{known} "))]
    return max(fitting, key=len, default=name)


def _user_name(node: ir.Node) -> str:
    weight = node.inputs[1]
    source = weight.producer() if weight is not None else None
    if source is not None and source.op_type in ("DequantizeLinear", "Transpose"):
        weight = source.inputs[0]
    if weight is None or not weight.is_initializer():
        return str(node.outputs[0].name)
    name = str(weight.name).removesuffix("_codes")
    return name.removesuffix(".weight") if name.endswith(".weight") else str(node.outputs[0].name)


def _reason(node: ir.Node) -> str:
    weight, feed = node.inputs[1], node.inputs[0]
    if constant(weight) is None and not _on_grid(weight):
        return "both factors are activations"
    if _on_grid(feed) and _on_grid(weight):
        return ""
    return "its weight or its input was not quantized"


def _on_grid(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"
