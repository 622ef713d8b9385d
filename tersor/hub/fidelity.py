"""Does the runtime compute what we think it computes? Compare, and name the first place where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from tersor import deadline
from tersor.hub.simulate import Coded, evaluate, simulate, unrounded_codes
from tersor.target import Divergence, Fidelity

Run = Callable[[ir.Model, Sequence[np.ndarray]], tuple[np.ndarray, ...]]
_AT_ONCE = 128
_LOOKED_AT = 32


def compare(onnx: ir.Model, inputs: Sequence[np.ndarray], runtime: str, run: Run) -> Fidelity:
    """Runtime against simulation on all items; where they part is sought on the items that differ most.

    `run` gives the runtime's flat outputs for a model in memory. Cost: one simulated pass, and about
    log2(activations) compilations of shortened models where any output differs.
    """
    items = len(inputs[0])
    pieces = [[a[i : i + _AT_ONCE] for a in inputs] for i in range(0, items, _AT_ONCE)]
    ours = _joined([simulate(onnx, piece, runtime) for piece in pieces])
    # A grid that is made at run time depends on which items run together.
    together = any(node.op_type == "DynamicQuantizeLinear" for node in onnx.graph)
    theirs = _joined([run(onnx, piece) for piece in (pieces if together else [inputs])])
    apart = [_by_item(a, b) for a, b in zip(ours, theirs, strict=True)]
    worst = np.argsort(-np.max(apart, axis=0), kind="stable")[:_LOOKED_AT]
    largest = float(np.max(apart))
    parts = first_divergence(onnx, [a[worst] for a in inputs], runtime, run) if largest > 0 else None
    return Fidelity(items, float(np.mean(_same(ours[0], theirs[0]))), largest, parts)


def first_divergence(onnx: ir.Model, inputs: Sequence[np.ndarray], runtime: str, run: Run) -> Divergence | None:
    """The first quantised activation whose codes differ, found by bisection over models that end there."""
    values = evaluate(onnx.graph, inputs, runtime)
    hidden = unrounded_codes(onnx.graph) if runtime == "openvino" else frozenset()
    names = [
        str(node.outputs[0].name)
        for node in onnx.graph
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and str(node.outputs[0].name) not in hidden
    ]
    ours = {
        str(v.name): (v_.codes if isinstance(v_, Coded) else v_).numpy()
        for v, v_ in values.items()
        if isinstance(v_, Coded | Tensor)
    }
    good, bad, found = -1, len(names), None
    while bad - good > 1:
        deadline.check()
        middle = (good + bad) // 2
        seen = _difference(names[middle], ours[names[middle]], run(ending_at(onnx, names[middle]), inputs)[0])
        good, bad, found = (middle, bad, found) if seen is None else (good, middle, seen)
    if found is not None:
        return found
    simulated, theirs = simulate(onnx, inputs, runtime), run(onnx, inputs)
    differing = [_difference(str(v.name), a, b) for v, a, b in zip(onnx.graph.outputs, simulated, theirs, strict=True)]
    return next((d for d in differing if d is not None), None)


def ending_at(onnx: ir.Model, name: str) -> ir.Model:
    """The part of `onnx` that computes the quantised value `name`, which becomes its only output."""
    short = onnx.clone()
    graph = short.graph
    value = next(v for node in graph for v in node.outputs if v.name == name)
    quantizer = value.producer()
    dynamic = quantizer.op_type == "DynamicQuantizeLinear"
    value.type = ir.TensorType(ir.DataType.UINT8 if dynamic else quantizer.inputs[2].const_value.dtype)
    graph.outputs[:] = [value]
    RemoveUnusedNodesPass()(short)
    return short


def _joined(pieces: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(each) for each in zip(*pieces, strict=True))


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Divergence | None:
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    differing = int(np.count_nonzero(apart))
    return Divergence(name, differing, apart.size, float(apart.max())) if differing else None


def _by_item(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.float64) - b.astype(np.float64)).reshape(len(a), -1).max(axis=1)


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which items get the same prediction: the same class along axis 1, or values within 1 % of the largest."""
    if a.ndim > 1 and a.shape[1] > 1:
        return (a.argmax(1) == b.argmax(1)).reshape(len(a), -1).all(axis=1)
    return _by_item(a, b) <= 0.01 * max(float(np.abs(b).max()), 1e-30)
