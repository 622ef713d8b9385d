"""Put the grids into the file: Q/DQ pairs on activations, integer initialisers for weights and biases.

    x -> QuantizeLinear -> DequantizeLinear -> Conv(., DequantizeLinear(int8), DequantizeLinear(int32)) -> ...

What the file means in exact arithmetic is what any runtime may compute; integer kernels recognise the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tersor.errors import ExportError
from tersor.hub.export import Exported
from tersor.hub.placement import MATRICES, Placement, moved_from, pads_channels, wanted
from tersor.hub.values import constant, drop_unused, initializer, node
from tersor.hub.weights import Codes, integer_matrices
from tersor.target import Compressed, Grid

_BIAS_LIMIT = 2**30


def insert_grids(exported: Exported, compressed: Compressed, placement: Placement) -> ir.Model:
    """The model of `exported` with the feeds and integer weights of `compressed`, placed as `placement` says.

    A matrix without integer weights or whose input has no feed stays in float. Raises `ExportError` for a feed that is
    not a full 8-bit grid.
    """
    onnx = exported.onnx.clone()
    graph = onnx.graph
    feeds = {exported.values[n]: _typed(n, g, placement) for n, g in compressed.feeds.items() if n in exported.values}
    integer = integer_matrices(graph, compressed.weights, MATRICES)
    grids = _grids(wanted(graph, integer, placement), feeds, placement)
    integer = {matrix: codes for matrix, codes in integer.items() if matrix.inputs[0] in grids}
    readers = _readers(graph, integer, grids)
    pairs = {value: _pair(graph, value, grid) for value, grid in grids.items() if value in {v for v, _, _ in readers}}
    for value, reader, index in readers:
        reader.replace_input_with(index, pairs[value])
    for matrix, codes in integer.items():
        _store_codes(graph, matrix, codes, pairs)
    drop_unused(graph)
    return onnx


def _typed(name: str, grid: Grid, placement: Placement) -> Grid:
    """The same grid in uint8 codes [0, 255] or int8 codes [-128, 127]."""
    if grid.high - grid.low != 255 or not grid.scale > 0 or not np.isfinite(np.float32(grid.scale)):
        raise ExportError(
            f"The grid of activation {name} has codes {grid.low}..{grid.high} and scale {grid.scale}; integer runtimes "
            "want 256 codes and a positive scale: choose an 8-bit feed."
        )
    low = -128 if placement.signed else 0
    return Grid(float(np.float32(grid.scale)), grid.zero + low - grid.low, low, low + 255)


def _grids(values: list[ir.Value], feeds: Mapping[str, Grid], placement: Placement) -> dict[ir.Value, Grid]:
    """The grid of every value that gets one: what moves values shares the grid of what it moves."""
    widest: dict[ir.Value, Grid] = {}
    for value in values:
        path = _path(value)
        root = path[-1]
        known = [feeds[str(v.name)] for v in [root, *path] if str(v.name) in feeds]
        if known and str(root.name) in feeds:
            widest[root] = known[0]
        elif known:
            widest[root] = max([*known, widest.get(root, known[0])], key=lambda g: g.scale)
    grids: dict[ir.Value, Grid] = {}
    for value in values:
        path = _path(value)
        grid = widest.get(path[-1])
        if grid is not None:
            grids.update(dict.fromkeys(_safe(path, grid, placement), grid))
    return grids


def _path(value: ir.Value) -> list[ir.Value]:
    """`value` and what it was moved from, back to where it was computed."""
    path = [value]
    while (before := moved_from(path[-1])) is not None:
        path.append(before)
    return path


def _safe(path: list[ir.Value], grid: Grid, placement: Placement) -> list[ir.Value]:
    """The path up to a channel pad, where the target computes such pads wrongly on a grid whose zero is not code 0."""
    if placement.padded_zero or grid.zero == 0:
        return path
    for i, value in enumerate(path):
        if pads_channels(value.producer()):
            return path[: i + 1]
    return path


def _readers(
    graph: ir.Graph, integer: Mapping[ir.Node, Codes], grids: Mapping[ir.Value, Grid]
) -> list[tuple[ir.Value, ir.Node, int]]:
    """(value, reader, input index) for everything that shall read through a grid."""
    found = []
    for reader in graph:
        for index in _gridded_inputs(reader, reader in integer, grids):
            found.append((reader.inputs[index], reader, index))
    return found


def _gridded_inputs(reader: ir.Node, integer: bool, grids: Mapping[ir.Value, Grid]) -> list[int]:
    if reader.op_type in MATRICES:
        return [0] if integer else []
    if reader.op_type in ("Add", "Concat"):
        every = [i for i, v in enumerate(reader.inputs) if v is not None]
        return every if all(reader.inputs[i] in grids for i in every) else []
    first = reader.inputs[0] if reader.inputs else None
    if first is None or first not in grids or reader.op_type in ("Relu", "Clip"):
        return []
    moves = any(moved_from(out) is first and out in grids for out in reader.outputs)
    averages = reader.op_type in ("ReduceMean", "AveragePool", "GlobalAveragePool")
    return [0] if moves or averages else []


def _pair(graph: ir.Graph, value: ir.Value, grid: Grid) -> ir.Value:
    """Insert Q and DQ behind `value`; what DQ gives."""
    kind = np.int8 if grid.low < 0 else np.uint8
    scale = initializer(graph, f"{value.name}_scale", np.array(grid.scale, np.float32))
    zero = initializer(graph, f"{value.name}_zero", np.array(grid.zero, kind))
    quantize = node("QuantizeLinear", [value, scale, zero], f"{value.name}_q")
    dequantize = node("DequantizeLinear", [quantize.outputs[0], scale, zero], f"{value.name}_dq")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _store_codes(graph: ir.Graph, matrix: ir.Node, codes: Codes, pairs: Mapping[ir.Value, ir.Value]) -> None:
    """Integer weight, and an integer bias at scale `s_x * s_w`."""
    bias = constant(matrix.inputs[2]) if matrix.op_type in ("Conv", "Gemm") and len(matrix.inputs) > 2 else None
    if bias is not None and bias.shape == codes.scale.shape and _plain_product(matrix):
        feed = matrix.inputs[0].producer()
        step = np.float32(constant(feed.inputs[1]))
        codes = _with_room(codes, bias, step)
        scale = step * codes.scale
        rounded = np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
        name = str(matrix.inputs[2].name)
        matrix.replace_input_with(2, _dequantized(graph, matrix, name, rounded, scale, 0))
    weight = _dequantized(graph, matrix, codes.name, codes.codes, codes.scale, codes.axis)
    matrix.replace_input_with(1, weight)


def _with_room(codes: Codes, bias: np.ndarray, step: np.float32) -> Codes:
    """The same codes, but for channels so close to dead that their bias would overflow 32 bits: those get coarser.

    There the bias is more than 2^30 steps, so what the weights lose is below one step of any 8-bit output grid.
    """
    least = np.maximum(np.abs(bias) / (step * np.float32(_BIAS_LIMIT)), np.finfo(np.float32).tiny / step)
    if np.all(least <= codes.scale):
        return codes
    scale = np.maximum(codes.scale, least.astype(np.float32))
    shape = [1] * codes.codes.ndim
    shape[codes.axis] = scale.size
    coarser = np.rint(codes.codes * (codes.scale / scale).reshape(shape)).astype(np.int8)
    return Codes(codes.name, coarser, scale, codes.axis)


def _plain_product(matrix: ir.Node) -> bool:
    scales = [matrix.attributes[a].as_float() for a in ("alpha", "beta") if a in matrix.attributes]
    return all(s == 1.0 for s in scales)


def _dequantized(
    graph: ir.Graph, reader: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray, axis: int
) -> ir.Value:
    """A DequantizeLinear of stored codes, placed before `reader`; two readers of one tensor share its codes."""
    prefix = f"{reader.outputs[0].name}.{name}"
    stored = graph.initializers.get(f"{name}_codes")
    if stored is None or not np.array_equal(constant(stored), codes):
        stored = initializer(graph, f"{name}_codes" if stored is None else f"{prefix}_codes", codes)
    step = initializer(graph, f"{prefix}_scale", scale.astype(np.float32))
    zero = initializer(graph, f"{prefix}_zero", np.zeros(scale.shape, codes.dtype))
    dequantize = node("DequantizeLinear", [stored, step, zero], f"{prefix}_dq", axis)
    graph.insert_before(reader, dequantize)
    return dequantize.outputs[0]
