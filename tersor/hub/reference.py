"""ONNX operators on torch tensors: the few that matter for speed by torch, every other one by ONNX's own reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.errors import ExportError

_OPSET = 20
_EXACT_FLOAT32 = 2**24


def apply(node: ir.Node, read: Sequence[Tensor | None]) -> list[Tensor]:
    """The outputs of one node. Raises `ExportError` for an operator that the reference does not have."""
    if node.op_type == "Conv":
        return [_conv(node, read)]
    if node.op_type in ("MaxPool", "AveragePool") and _poolable(node, read):
        return [_pool(node, read)]
    if node.op_type == "MatMul" and read[0] is not None and read[1] is not None:
        return [read[0] @ read[1]]
    if node.op_type == "MatMulInteger":
        return [_integer_product(*read)]
    if node.op_type == "DynamicQuantizeLinear" and read[0] is not None:
        return _quantised_now(read[0])
    if node.op_type == "ReduceMean" and read[0] is not None and len(read) > 1 and read[1] is not None:
        return [read[0].mean(tuple(read[1].tolist()), keepdim=bool(_int(node, "keepdims", 1)))]
    if node.op_type == "GatherElements" and read[0] is not None and read[1] is not None:  # theirs takes one index a row
        axis = _int(node, "axis", 0)
        at = read[1].long()
        return [read[0].gather(axis, torch.where(at < 0, at + read[0].shape[axis], at))]
    return _reference(node, read)


def exact_kind(w: Tensor) -> torch.dtype:
    """The narrowest float in which sums of 8-bit codes times the columns of `w` (c, r) are exact, in any order."""
    return torch.float32 if float(w.abs().sum(-2).max()) * 255 < _EXACT_FLOAT32 else torch.float64


def _integer_product(
    a: Tensor | None, b: Tensor | None, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """(..., c) codes times (c, r) codes as int32; zero points one in all, for `b` also one a column."""
    assert a is not None
    assert b is not None
    w = b.double() - (0 if b_zero is None else b_zero.double())
    kind = exact_kind(w)
    x = a.to(kind) - (0 if a_zero is None else a_zero.to(kind))
    return (x @ w.to(kind)).to(torch.int32)


def _quantised_now(x: Tensor) -> list[Tensor]:
    """uint8 codes, scale and zero point from the extremes of all of `x` and 0, every step in float32."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    return [codes.to(torch.uint8), scale, zero.to(torch.uint8)]


def _conv(node: ir.Node, read: Sequence[Tensor | None]) -> Tensor:
    x, w, b = (*read, None)[:3]
    assert x is not None
    assert w is not None
    rank = w.dim() - 2
    if _text(node, "auto_pad") not in ("", "NOTSET"):
        raise ExportError(f"{node.name} pads by {_text(node, 'auto_pad')}; the simulation wants explicit pads.")
    pads = _ints(node, "pads", [0] * 2 * rank)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    ones = [1] * rank
    return convolve(
        F.pad(x, _torch_pads(pads)),
        w,
        b,
        stride=_ints(node, "strides", ones),
        dilation=_ints(node, "dilations", ones),
        groups=_int(node, "group", 1),
    )


def _poolable(node: ir.Node, read: Sequence[Tensor | None]) -> bool:
    """Torch's own pooling serves floor-mode windows without pads in an average."""
    plain = _int(node, "ceil_mode", 0) == 0 and _text(node, "auto_pad") in ("", "NOTSET") and len(node.outputs) == 1
    padded = any(_ints(node, "pads", [0]))
    dilated = any(d != 1 for d in _ints(node, "dilations", [1]))
    return plain and not dilated and (node.op_type == "MaxPool" or not padded)


def _pool(node: ir.Node, read: Sequence[Tensor | None]) -> Tensor:
    x = read[0]
    assert x is not None
    kernel = _ints(node, "kernel_shape", [])
    rank = len(kernel)
    strides = _ints(node, "strides", [1] * rank)
    if node.op_type == "AveragePool":
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1](x, kernel, strides)
    padded = F.pad(x, _torch_pads(_ints(node, "pads", [0] * 2 * rank)), value=float("-inf"))
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1](padded, kernel, strides)


def _reference(node: ir.Node, read: Sequence[Tensor | None]) -> list[Tensor]:
    from onnx import helper, shape_inference
    from onnx.reference import ReferenceEvaluator

    arrays = {v.name: t.numpy() for v, t in zip(node.inputs, read, strict=True) if v is not None and t is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in arrays.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(v.name) for v in node.outputs]
    graph = helper.make_graph([ir.serde.serialize_node(node)], "one", inputs, outputs)
    opset = helper.make_opsetid(node.domain, node.version or _OPSET)
    try:
        # Some operators are defined by their inputs' types, which shape inference writes into the model.
        model = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[opset]))
        made = ReferenceEvaluator(model).run(None, arrays)
    except (NotImplementedError, RuntimeError, TypeError) as cause:
        raise ExportError(f"The simulation cannot compute {node.op_type} ({node.name}): {cause}.") from cause
    return [torch.from_numpy(np.array(out)) for out in made]


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX lists all begins, then all ends; torch lists pairs from the last axis on."""
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _text(node: ir.Node, name: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else ""
