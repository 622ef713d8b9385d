"""Run a hub file in torch as a given runtime would, integer for integer.

What a QDQ file means is not one function: where codes are rounded, in which order floats are multiplied, and which
roundings are dropped is the runtime's (see `arithmetic`). With it known, the simulation gives the runtime's own codes, so
a difference points at a node, not at "quantisation noise".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from tersor import deadline
from tersor.errors import ExportError
from tersor.hub.arithmetic import Added, Arithmetic, Coded, OnnxRuntimeArithmetic, OpenVINOArithmetic, Sums
from tersor.hub.placement import MOVES
from tersor.hub.reference import apply, exact_kind
from tersor.hub.values import constant, flag, plain_product
from tersor.target import Grid

_RUNTIMES: Mapping[str, Arithmetic] = {
    "onnxruntime": OnnxRuntimeArithmetic(),
    "openvino": OpenVINOArithmetic(),
}


@dataclass(frozen=True)
class Stored:
    """A weight or bias as the file holds it: whole numbers, and the scale of each index along `axis`."""

    codes: Tensor
    scale: Tensor
    axis: int

    def real(self) -> Tensor:
        shape = [1] * self.codes.dim()
        if self.scale.numel() > 1:
            shape[self.axis] = -1
        return self.codes.float() * self.scale.reshape(shape)


Value = Tensor | Coded | Sums | Added | Stored


@torch.no_grad()
def simulate(
    onnx: ir.Model | Path, inputs: Sequence[np.ndarray], runtime: str = "onnxruntime"
) -> tuple[np.ndarray, ...]:
    """Flat outputs of the hub file for flat inputs, as `runtime` ("onnxruntime" or "openvino") computes them."""
    graph = (ir.load(onnx) if isinstance(onnx, Path) else onnx).graph
    values = evaluate(graph, inputs, runtime)
    arithmetic = _RUNTIMES[runtime]
    return tuple(_real(values[v], arithmetic).numpy() for v in graph.outputs)


@torch.no_grad()
def evaluate(graph: ir.Graph, inputs: Sequence[np.ndarray], runtime: str) -> dict[ir.Value, Value]:
    """Every value of the graph."""
    arithmetic = _RUNTIMES[runtime]
    unrounded = unrounded_codes(graph) if runtime == "openvino" else frozenset()
    values: dict[ir.Value, Value] = dict(zip(graph.inputs, (torch.as_tensor(a) for a in inputs), strict=True))
    for value in graph.initializers.values():
        values[value] = torch.from_numpy(np.array(constant(value)))
    for node in graph:
        deadline.check()
        read = [None if v is None else values[v] for v in node.inputs]
        for out, value in zip(node.outputs, _step(node, read, arithmetic, unrounded), strict=False):
            values[out] = value
    return values


def _step(node: ir.Node, read: list[Value | None], arithmetic: Arithmetic, unrounded: frozenset[str]) -> list[Value]:
    kind, first = node.op_type, read[0] if read else None
    if kind == "QuantizeLinear":
        return [_quantize(node, first, arithmetic, str(node.outputs[0].name) not in unrounded)]
    if kind == "DequantizeLinear":
        return [first if isinstance(first, Coded) else _stored(node, read)]
    if kind in ("Conv", "Gemm", "MatMul") and isinstance(first, Coded) and isinstance(read[1], Stored):
        sums = _matrix(node, first, read[1], read[2] if len(read) > 2 else None)
        if sums is not None:
            return [sums]
    if kind in ("Relu", "Clip") and isinstance(first, Sums | Added):
        return [first.clipped(*_bounds(node))]
    if kind == "Add" and isinstance(first, Coded) and isinstance(read[1], Coded):
        return [Added(first, read[1])]
    if kind in MOVES and isinstance(first, Coded):
        moved = apply(node, [first.codes - first.grid.zero, *_reals(read[1:], arithmetic)])
        return [Coded(m + first.grid.zero, first.grid) for m in moved]
    return list(apply(node, _reals(read, arithmetic)))


def _quantize(node: ir.Node, value: Value | None, arithmetic: Arithmetic, rounded: bool) -> Coded:
    grid = grid_of(node)
    if isinstance(value, Coded) and value.grid == grid:
        return value
    if isinstance(value, Sums):
        return Coded(arithmetic.requantize(value, grid, rounded), grid)
    if isinstance(value, Added):
        return Coded(arithmetic.add(value, grid), grid)
    return Coded(arithmetic.quantize(_real(value, arithmetic), grid), grid)


def grid_of(node: ir.Node) -> Grid:
    """The grid of a QuantizeLinear."""
    zero = constant(node.inputs[2])
    if zero is None or zero.size != 1:
        raise ExportError(f"The activation grid of {node.name} is not per tensor; the simulation knows only those.")
    bounds = np.iinfo(zero.dtype)
    return Grid(float(np.asarray(constant(node.inputs[1])).reshape(())), int(zero.reshape(())), bounds.min, bounds.max)


def _stored(node: ir.Node, read: list[Value | None]) -> Stored:
    codes, scale = read[0], read[1]
    zero = read[2] if len(read) > 2 else None
    if not isinstance(codes, Tensor) or not isinstance(scale, Tensor) or (isinstance(zero, Tensor) and zero.any()):
        raise ExportError(
            f"{node.name} dequantises what is no symmetric stored tensor; the simulation knows only those."
        )
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return Stored(codes, scale.reshape(-1), axis)


def _matrix(node: ir.Node, x: Coded, weight: Stored, bias: Value | None) -> Sums | None:
    """Exact integer sums: in float32 where no partial sum can leave its 24 bits, else in float64."""
    if node.op_type == "Gemm" and not plain_product(node):
        return None
    w = weight.codes.T if node.op_type == "Gemm" and flag(node, "transB") else weight.codes
    channels = w.shape[0] if node.op_type == "Conv" else w.shape[-1]
    step = np.float32(x.grid.scale) * weight.scale.numpy()
    codes, extra = torch.zeros(channels, dtype=torch.float64), bias
    if isinstance(extra, Stored):
        codes, extra = extra.codes.double(), None
    if extra is not None:
        return None
    kind = exact_kind(w.double().flatten(1).T if node.op_type == "Conv" else w.double())
    centred, w = (x.codes - x.grid.zero).to(kind), w.to(kind)
    acc = _convolve(node, centred, w) if node.op_type == "Conv" else centred @ w
    steps = torch.from_numpy(np.broadcast_to(step, (channels,)).copy())
    return Sums(acc, codes, steps, 1 if node.op_type == "Conv" else -1)


def _convolve(node: ir.Node, x: Tensor, w: Tensor) -> Tensor:
    return apply(node, [x, w])[0]


def _bounds(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = (constant(v) for v in (*node.inputs[1:], None, None)[:2])
    return (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))


def _real(value: Value | None, arithmetic: Arithmetic) -> Tensor:
    if isinstance(value, Sums):
        return arithmetic.real(value)
    if isinstance(value, Added):
        return (value.a.real() + value.b.real()).clamp(value.low, value.high)
    if isinstance(value, Coded | Stored):
        return value.real()
    assert value is not None
    return value


def _reals(read: Sequence[Value | None], arithmetic: Arithmetic) -> list[Any]:
    return [None if value is None else _real(value, arithmetic) for value in read]


def unrounded_codes(graph: ir.Graph) -> frozenset[str]:
    """Names of QuantizeLinear outputs that OpenVINO computes, clips, and never rounds.

    It runs `conv -> grid -> add -> grid` as one convolution with the other addend as a start value, and drops the inner
    rounding.
    """
    found = set()
    for node in graph:
        if node.op_type == "Add" and _next_kind(node.outputs[0]) == "QuantizeLinear":
            sources = [_quantizer(v) for v in node.inputs]
            if all(s is not None for s in sources):
                fused = [s for s in sources if s is not None and _only_convolution(s)]
                if fused:
                    found.add(str(fused[-1].outputs[0].name))
    return frozenset(found)


def _next_kind(value: ir.Value) -> str:
    """The operator that reads `value`, looking through one ReLU or clip."""
    uses = list(value.uses())
    if len(uses) != 1:
        return ""
    reader = uses[0].node
    return _next_kind(reader.outputs[0]) if reader.op_type in ("Relu", "Clip") else reader.op_type


def _quantizer(value: ir.Value | None) -> ir.Node | None:
    dequantize = value.producer() if value is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    source = dequantize.inputs[0]
    return source.producer() if source is not None else None


def _only_convolution(quantize: ir.Node) -> bool:
    """True where the codes come from a convolution (or a ReLU on one) and only one reader wants them."""
    value = quantize.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Relu" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    dequantized = [u.node.outputs[0] for u in quantize.outputs[0].uses()]
    alone = len(dequantized) == 1 and len(list(dequantized[0].uses())) == 1
    return alone and producer is not None and producer.op_type == "Conv"
