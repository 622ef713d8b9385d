"""Move scale between neighbouring matrices so that their channels have equal ranges.

Between `A` and `B` stands only what commutes with a positive scale per channel (ReLU, pooling, padding with zeros, reshapes).
Then for every channel i and any s_i > 0, rows (and bias) of A divided by s_i and columns of B times s_i give the same
outputs. `s_i = sqrt(r_A(i) / r_B(i))`, with `r` the largest magnitude of the row or column, makes both ranges
`sqrt(r_A r_B)`, so that no channel is lost beside a larger one. Pairs overlap (B is the next A), so it is repeated until
nothing moves.

Cost: a few passes over the weights; no data. It does nothing where an activation saturates (ReLU6), branches, or where a norm
has not been folded. Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.graph.arguments import bound
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.site import Group, Matrix, groups, matrices

_HOMOGENEOUS = frozenset(
    {
        aten.relu.default,
        aten.leaky_relu.default,
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.mean.dim,
        aten.constant_pad_nd.default,
        aten.pad.default,
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.squeeze.dims,
        aten.clone.default,
        aten.dropout.default,
    }
)
_SWEEPS = 40
_STILL = 1e-4  # a sweep that moves no scale by more than this is the last


@dataclass(frozen=True)
class _Pair:
    """Scale i moves between the rows `rows[i]` of `first` and the positions `columns[i]` of `axis` of `second`."""

    first: Matrix
    second: Matrix
    rows: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, ...], ...]
    axis: int


def equalise(model: Model) -> Model:
    """The same function with equal channel ranges on both sides of every pair of matrices."""
    model = model.copy()
    pairs = list(_pairs(model))
    named = {
        name for pair in pairs for name in (pair.first.weight, pair.first.bias, pair.second.weight) if name is not None
    }
    values = {name: model.tensor(name).detach().double() for name in sorted(named)}
    for _ in range(_SWEEPS):
        if max((_balance(values, pair) for pair in pairs), default=0.0) < _STILL:
            break
    for name, value in values.items():
        model.assign(name, value.to(model.tensor(name).dtype))
    return model


def _pairs(model: Model) -> Iterator[_Pair]:
    by_node = {matrix.node: matrix for matrix in matrices(model) if _alone(model, matrix)}
    found = [group for group in groups(model) if group.refused is None]
    for node in model.graph.nodes:
        first, second = by_node.get(node.name), by_node.get(_next(node).name)
        if first is not None and second is not None and first != second:
            pair = next((p for p in (_joined(group, first, second) for group in found) if p), None)
            if pair:
                yield pair


def _next(node: fx.Node) -> fx.Node:
    """The first node that reads `node` and does not commute with a scale; `node` itself where it branches."""
    here = node
    while len(here.users) == 1:
        here = next(iter(here.users))
        if (
            here.target not in _HOMOGENEOUS
            or bound(here).get("value")
            or bound(here).get("mode", "constant") != "constant"
        ):
            return here
    return node


def _joined(group: Group, first: Matrix, second: Matrix) -> _Pair | None:
    out, into = _output_axis(first), _input_axis(second)
    if out is None or into is None:
        return None
    rows = [m.positions for m in group.members if (m.tensor, m.axis) == (first.weight, out)]
    columns = [m.positions for m in group.members if (m.tensor, m.axis) == (second.weight, into)]
    if not rows or not columns or _overlap(rows[0]) or _overlap(columns[0]):
        return None
    return _Pair(first, second, rows[0], columns[0], into)


def _output_axis(matrix: Matrix) -> int | None:
    if matrix.convolution is None or not matrix.convolution.transposed:
        return 0
    return 1 if matrix.groups == 1 else None


def _input_axis(matrix: Matrix) -> int | None:
    """The weight's axis along which input channels run; None where groups of several channels mix them."""
    if matrix.groups == 1:
        return 0 if matrix.convolution and matrix.convolution.transposed else 1
    depthwise = matrix.shape[1] == 1 and not (matrix.convolution and matrix.convolution.transposed)
    return 0 if depthwise and matrix.shape[0] == matrix.groups else None


def _overlap(positions: tuple[tuple[int, ...], ...]) -> bool:
    flat = [i for block in positions for i in block]
    return len(flat) != len(set(flat))


def _alone(model: Model, matrix: Matrix) -> bool:
    """Whether nobody else reads its weight or bias."""
    ours = [model.tensor(name) for name in (matrix.weight, matrix.bias) if name is not None]
    pointers = {tensor.data_ptr() for tensor in ours}
    readers = {
        user.name
        for node in model.graph.nodes
        if node.op == "get_attr" and model.tensor(str(node.target)).data_ptr() in pointers
        for user in node.users
    }
    return readers == {matrix.node}


def _balance(values: dict[str, Tensor], pair: _Pair) -> float:
    """Equalise one pair in `values`; the largest change of a scale, as a logarithm."""
    first, second = values[pair.first.weight], values[pair.second.weight]
    out = _output_axis(pair.first)
    assert out is not None
    ratio = _ranges(first, out, pair.rows) / _ranges(second, pair.axis, pair.columns)
    scale = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio.sqrt(), 1.0)
    values[pair.first.weight] = _scaled(first, out, pair.rows, 1 / scale)
    if pair.first.bias is not None:
        values[pair.first.bias] = _scaled(values[pair.first.bias], 0, pair.rows, 1 / scale)
    values[pair.second.weight] = _scaled(second, pair.axis, pair.columns, scale)
    return float(scale.log().abs().max())


def _ranges(weight: Tensor, axis: int, positions: tuple[tuple[int, ...], ...]) -> Tensor:
    largest = weight.abs().movedim(axis, 0).flatten(1).amax(1)
    return torch.stack([largest[list(block)].amax() for block in positions])


def _scaled(tensor: Tensor, axis: int, positions: tuple[tuple[int, ...], ...], scale: Tensor) -> Tensor:
    factor = torch.ones(tensor.shape[axis], dtype=torch.float64)
    for block, each in zip(positions, scale, strict=True):
        factor[list(block)] = each
    return tensor * factor.reshape([-1 if d == axis else 1 for d in range(tensor.ndim)])
