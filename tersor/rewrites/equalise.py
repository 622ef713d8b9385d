"""Move scale between neighbouring matrices so that their channels have equal ranges.

Between `A` and `B` stands only what commutes with a positive scale per channel (ReLU, pooling, padding with zeros, reshapes).
Then for every channel i and any s_i > 0, rows (and bias) of A divided by s_i and columns of B times s_i give the same
outputs. `s_i = sqrt(r_A(i) / r_B(i))`, with `r` the largest magnitude of the row or column, makes both ranges
`sqrt(r_A r_B)`, so that no channel is lost beside a larger one. Pairs overlap (B is the next A), so it is repeated until
nothing moves.

With a profile, a pair takes its new scales only where the quadratic of B in 8 bits clearly falls: `W -> W S`,
`H -> S^-1 H S^-1`, and the range of the input goes with its largest root mean square; no new forward pass. (A has a grid
a row, so its damage stays: its error shrinks by s, and its `g` grows by s^2.) The facts follow in the same way; only ranges
of activations between the two must be seen anew.

Cost: a few passes over the weights. It does nothing where an activation saturates (ReLU6), branches, or where a norm has
not been folded. Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tersor import deadline
from tersor.graph.arguments import bound
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts, Profile, shelved
from tersor.shelf import Shelf
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
CLEARLY = 0.8  # of the damage before; below that, another pass over the data is not worth it
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
    return _moved(model, _moves(model))


def equalise_where_it_gains(model: Model, profile: Profile) -> tuple[Model, Mapping[str, Facts]]:
    """The same, only where that gains in 8 bits by a profile of `model`, and the facts of the new model's matrices.

    `model` itself and its own facts where it gains nowhere.
    """
    moves = [(pair, scale) for pair, scale in _moves(model) if _gains(model, pair, scale, profile)]
    facts = shelved(profile.facts)
    for pair, scale in moves:
        _follow(facts, model, pair, scale)
    return _moved(model, moves) if moves else model, facts


def _moves(model: Model) -> list[tuple[_Pair, Tensor]]:
    pairs = list(_pairs(model))
    return list(zip(pairs, _scales(model, pairs), strict=True))


def _moved(model: Model, moves: Sequence[tuple[_Pair, Tensor]]) -> Model:
    model = model.copy()
    values = _values(model, [pair for pair, _ in moves])
    for pair, scale in moves:
        _move(values, pair, scale)
    for name, value in values.items():
        model.assign(name, value.to(model.tensor(name).dtype))
    return model


def _scales(model: Model, pairs: Sequence[_Pair]) -> list[Tensor]:
    """What each pair moves in all, once nothing moves any more."""
    values = _values(model, pairs)
    total = [torch.ones(len(pair.rows), dtype=torch.float64) for pair in pairs]
    for _ in range(_SWEEPS):
        largest = 0.0
        deadline.check()
        for i, pair in enumerate(pairs):
            scale = _balancing(values, pair)
            _move(values, pair, scale)
            total[i] *= scale
            largest = max(largest, float(scale.log().abs().max()))
        if largest < _STILL:
            break
    return total


def _values(model: Model, pairs: Sequence[_Pair]) -> Shelf[Tensor]:
    """Float64 weights and biases of all pairs."""
    named = {
        name for pair in pairs for name in (pair.first.weight, pair.first.bias, pair.second.weight) if name is not None
    }
    values: Shelf[Tensor] = Shelf()
    for name in sorted(named):
        values[name] = model.tensor(name).detach().double()
    return values


def _gains(model: Model, pair: _Pair, scale: Tensor, profile: Profile) -> bool:
    """Whether storing the second matrix in 8 bits, and reading its input so, costs clearly less damage than before."""
    matrix, facts = pair.second, profile.facts[pair.second.name]
    w = to_matrix(model.tensor(matrix.weight).double(), matrix.groups, matrix.transposed)
    s = _as_rows(model, matrix, pair.axis, pair.columns, scale)
    step = profile.ranges[_input(model, matrix)].step
    gram = facts.with_inputs_divided(s).gram
    after = _damage(w * s, gram, facts.fisher, step * _root_mean_square(gram) / _root_mean_square(facts.gram))
    return after < CLEARLY * _damage(w, facts.gram, facts.fisher, step)


def _follow(facts: Shelf[Facts], model: Model, pair: _Pair, scale: Tensor) -> None:
    """Outputs of the first and inputs of the second are divided by `scale`; gradients go the other way."""
    out = _output_axis(pair.first)
    assert out is not None
    before = facts[pair.first.name]
    s = _as_rows(model, pair.first, out, pair.rows, scale)
    facts[pair.first.name] = replace(
        before,
        fisher=before.fisher * s[:, :, 0].reshape(-1).square(),
        gradient=None if before.gradient is None else before.gradient * s.square(),
    )
    s = _as_rows(model, pair.second, pair.axis, pair.columns, scale)
    facts[pair.second.name] = facts[pair.second.name].with_inputs_divided(s)


def _as_rows(model: Model, matrix: Matrix, axis: int, positions: tuple[tuple[int, ...], ...], scale: Tensor) -> Tensor:
    """The factors of each weight, as (groups, rows, columns)."""
    ones = torch.ones(model.tensor(matrix.weight).shape, dtype=torch.float64)
    return to_matrix(_scaled(ones, axis, positions, scale), matrix.groups, matrix.transposed)


def _damage(w: Tensor, gram: Tensor, fisher: Tensor, step: float) -> float:
    """Of uniform noise, half a step at most, on weights (a grid a row, 8 bits) and input: see `maths.damage`."""
    g, power = fisher.reshape(w.shape[:2]), gram[:, :-1, :-1].diagonal(dim1=1, dim2=2).sum(1)
    steps = w.abs().amax(2) / 127
    noise = (g * (steps.square() * power[:, None] + step**2 * w.square().sum(2))).sum()
    return 0.5 * float(noise) / 12


def _root_mean_square(gram: Tensor) -> float:
    """The largest of any input."""
    return max(float(gram[:, :-1, :-1].diagonal(dim1=1, dim2=2).amax().clamp_min(0).sqrt()), 1e-30)


def _input(model: Model, matrix: Matrix) -> str:
    node = next(n for n in model.graph.nodes if n.name == matrix.node)
    return node.all_input_nodes[0].name


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


def _balancing(values: Mapping[str, Tensor], pair: _Pair) -> Tensor:
    """The scale that makes the ranges of one pair equal."""
    out = _output_axis(pair.first)
    assert out is not None
    first, second = values[pair.first.weight], values[pair.second.weight]
    ratio = _ranges(first, out, pair.rows) / _ranges(second, pair.axis, pair.columns)
    return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio.sqrt(), 1.0)


def _move(values: dict[str, Tensor], pair: _Pair, scale: Tensor) -> None:
    """Divide the rows of the first by `scale`, multiply the columns of the second by it."""
    out = _output_axis(pair.first)
    assert out is not None
    values[pair.first.weight] = _scaled(values[pair.first.weight], out, pair.rows, 1 / scale)
    if pair.first.bias is not None:
        values[pair.first.bias] = _scaled(values[pair.first.bias], 0, pair.rows, 1 / scale)
    values[pair.second.weight] = _scaled(values[pair.second.weight], pair.axis, pair.columns, scale)


def _ranges(weight: Tensor, axis: int, positions: tuple[tuple[int, ...], ...]) -> Tensor:
    largest = weight.abs().movedim(axis, 0).flatten(1).amax(1)
    return torch.stack([largest[list(block)].amax() for block in positions])


def _scaled(tensor: Tensor, axis: int, positions: tuple[tuple[int, ...], ...], scale: Tensor) -> Tensor:
    factor = torch.ones(tensor.shape[axis], dtype=torch.float64)
    for block, each in zip(positions, scale, strict=True):
        factor[list(block)] = each
    return tensor * factor.reshape([-1 if d == axis else 1 for d in range(tensor.ndim)])
