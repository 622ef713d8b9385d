"""Put the grids into the file: Q/DQ pairs on activations, integer initialisers for weights and biases.

    x -> QuantizeLinear -> DequantizeLinear -> Conv(., DequantizeLinear(int8), DequantizeLinear(int32)) -> ...

What the file means in exact arithmetic is what any runtime may compute; integer kernels recognise the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx_ir as ir

from tersor.errors import ExportError
from tersor.hub.dynamic import can_feed, feed_at_run_time
from tersor.hub.export import Exported
from tersor.hub.lookups import look_up_codes
from tersor.hub.placement import (
    MATRICES,
    MOVES,
    Placement,
    leaving,
    moved_from,
    pads_channels,
    reads_codes,
    sums_a_sequence,
    wanted,
)
from tersor.hub.values import constant, drop_unused, initializer, node, plain_product, shared_initializer
from tersor.hub.weights import Codes, integer_matrices
from tersor.target import Compressed, Dynamic, Grid

_BIAS_LIMIT = 2**30


def insert_grids(exported: Exported, compressed: Compressed, placement: Placement) -> ir.Model:
    """The model of `exported` with the feeds and integer weights of `compressed`, placed as `placement` says.

    A matrix without integer weights or whose input has no feed stays in float. Raises `ExportError` for a static feed
    that is not a full 8-bit grid, and for a dynamic one where `placement` has none.
    """
    onnx = exported.onnx.clone()
    graph = onnx.graph
    given = {exported.values[n]: _typed(n, f, placement) for n, f in compressed.feeds.items() if n in exported.values}
    feeds = {name: feed for name, feed in given.items() if isinstance(feed, Grid)}

    def fed(value: ir.Value) -> bool:
        return any(str(v.name) in feeds for v in _path(value))

    stored = integer_matrices(graph, compressed.weights, MATRICES)
    dynamic = [m for m in stored if can_feed(m) and isinstance(_nearest(m.inputs[0], given), Dynamic)]
    integer = {matrix: codes for matrix, codes in stored.items() if matrix not in dynamic and fed(matrix.inputs[0])}
    for matrix in dynamic:
        feed_at_run_time(graph, matrix, stored[matrix])
    grids = _grids(wanted(graph, integer, placement, fed), feeds, placement)
    leaves = leaving(graph)
    for value, grid in grids.items():
        _read_through_grid(graph, value, grid, integer, placement, leaves)
    for matrix, codes in integer.items():
        _store_codes(graph, matrix, codes)
    look_up_codes(graph, compressed.weights)
    drop_unused(graph)
    return onnx


def _typed(name: str, grid: Grid | Dynamic, placement: Placement) -> Grid | Dynamic:
    """The same grid in uint8 codes [0, 255] or int8 codes [-128, 127]; a dynamic one as it is."""
    if isinstance(grid, Dynamic):
        if placement.dynamic:
            return grid
        raise ExportError(
            f"Activation {name} is quantized dynamically, but this target supports only static quantization: use static "
            "feeds, or target onnxruntime."
        )
    if grid.high - grid.low != 255 or not grid.scale > 0 or not np.isfinite(np.float32(grid.scale)):
        raise ExportError(
            f"The quantizer of activation {name} has values {grid.low}..{grid.high} and scale {grid.scale}; integer runtimes "
            "need 256 values and a positive scale: choose 8 bits."
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


def _nearest(value: ir.Value, feeds: Mapping[str, Grid | Dynamic]) -> Grid | Dynamic | None:
    """The feed of `value`, or else of the nearest one that it was moved from."""
    return next((feeds[str(v.name)] for v in _path(value) if str(v.name) in feeds), None)


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


def _read_through_grid(
    graph: ir.Graph,
    value: ir.Value,
    grid: Grid,
    integer: Collection[ir.Node],
    placement: Placement,
    leaves: Collection[ir.Value],
) -> None:
    """Put Q and DQ behind `value` for all that read it: one float reader would keep its producer in float.

    Only what leaves the network with it goes on reading floats.
    """
    readers = [
        use for use in value.uses() if placement.padded_zero or grid.zero == 0 or not _comes_to(pads_channels, use.node)
    ]
    readers = [use for use in readers if placement.sequences or not _comes_to(sums_a_sequence, use.node)]
    readers = [use for use in readers if reads_codes(use.node, value, integer, leaves)]
    if value in leaves and not readers:
        return
    dequantized = _pair(graph, value, grid)
    for reader, index in readers:
        stays_float = reader.op_type in MATRICES and reader not in integer and index == 0
        channels = _channels_read(reader) if stays_float else None
        through = dequantized if channels is None else _spread(graph, reader, dequantized, channels)
        reader.replace_input_with(index, through)


def _spread(graph: ir.Graph, reader: ir.Node, dequantized: ir.Value, channels: int) -> ir.Value:
    """The same values by a DQ with one (equal) scale a channel.

    ONNX Runtime rounds the float weights of any matrix between a per-tensor DQ and a Q to 8 bits by itself; a matrix
    that was left in float is meant to stay so.
    """
    plain = dequantized.producer()
    name = f"{reader.outputs[0].name}.{dequantized.name}"
    scale = np.full(channels, constant(plain.inputs[1]), np.float32)
    zero = np.full(channels, constant(plain.inputs[2]))
    stored = initializer(graph, f"{name}_scale", scale), initializer(graph, f"{name}_zero", zero)
    dequantize = node("DequantizeLinear", [plain.inputs[0], *stored], f"{name}_spread", 1)
    graph.insert_before(reader, dequantize)
    return dequantize.outputs[0]


def _channels_read(matrix: ir.Node) -> int | None:
    """How many channels (axis 1) the input of a matrix with a constant weight has; None for one that reads axis -1."""
    weight = constant(matrix.inputs[1])
    if weight is None or matrix.op_type == "MatMul":
        return None
    if matrix.op_type == "Conv":
        return weight.shape[1] * (matrix.attributes["group"].as_int() if "group" in matrix.attributes else 1)
    transposed = matrix.op_type == "Gemm" and "transB" in matrix.attributes and matrix.attributes["transB"].as_int()
    return weight.shape[1] if transposed else weight.shape[0]


def _comes_to(kind: Callable[[ir.Node], bool], reader: ir.Node) -> bool:
    """True where `reader` is of the `kind`, or only moves values, which then come to such a node."""
    seen, waiting = {reader}, [reader]
    while waiting:
        at = waiting.pop()
        if kind(at):
            return True
        if at.op_type in MOVES:
            new = {use.node for out in at.outputs for use in out.uses()} - seen
            seen |= new
            waiting += new
    return False


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


def _store_codes(graph: ir.Graph, matrix: ir.Node, codes: Codes) -> None:
    """Integer weight, and an integer bias at scale `s_x * s_w`."""
    bias = constant(matrix.inputs[2]) if matrix.op_type in ("Conv", "Gemm") and len(matrix.inputs) > 2 else None
    if bias is not None and bias.shape == codes.scale.shape and plain_product(matrix):
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


def _dequantized(
    graph: ir.Graph, reader: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray, axis: int
) -> ir.Value:
    """A DequantizeLinear of stored codes, placed before `reader`; two readers of one tensor share its codes."""
    prefix = f"{reader.outputs[0].name}.{name}"
    stored = shared_initializer(graph, f"{name}_codes", f"{prefix}_codes", codes)
    step = initializer(graph, f"{prefix}_scale", scale.astype(np.float32))
    zero = initializer(graph, f"{prefix}_zero", np.zeros(scale.shape, codes.dtype))
    dequantize = node("DequantizeLinear", [stored, step, zero], f"{prefix}_dq", axis)
    graph.insert_before(reader, dequantize)
    return dequantize.outputs[0]
