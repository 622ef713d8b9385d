"""What was measured on data: H, g, ranges.

For a layer `y = W x + b` and `x~ = (x, 1)`: `gram` is `H = E[x~ x~^T]`, `fisher` is `g_i = E[(dL/dy_i)^2]` with labels
sampled from the model's own prediction, `drift` is `C = E[x_original x~_now^T]` once earlier layers have changed. The
damage of replacing `W` by `V` is `1/2 tr(diag(g) (V - W) H (V - W)^T)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from tersor import deadline
from tersor.errors import DataError
from tersor.graph.checked import Finite, checked, is_finite
from tersor.graph.fisher import gradients, squared_weight_gradients
from tersor.graph.memory import cut, together
from tersor.graph.model import Model
from tersor.graph.recurrent import recurrences
from tersor.graph.watched import OUTPUTS, watched
from tersor.maths.gram import Scatter, products, scatter, shrunk, with_constant
from tersor.maths.histogram import Histogram
from tersor.maths.unfold import positions, to_matrix, unfold
from tersor.shelf import Shelf
from tersor.site import Matrix, matrices

POSITIONS = 64  # output positions an item that enter the Gram matrix
TEMPERATURE = 8.0  # on items that it was trained on a network is so sure of itself that its Fisher is mostly noise
MEMORY = 2 << 30  # bytes of Gram matrices held at once


@dataclass(frozen=True)
class Facts:
    """What is known about one matrix of `groups` blocks, `r` rows (all groups) and `c` columns.

    gram: float64 (groups, c + 1, c + 1), mean per output position, last row and column the constant.
    fisher: float64 (r,), summed over output positions, mean over items.
    activity: float64 (groups, 2, c), `E|x_j|` and the share of positions where `x_j` is not zero.
    drift: float64 (groups, c + 1, c + 1) or None, `E[x~_original x~_now^T]`.
    gradient: float64 (groups, r / groups, c) or None, `E[(dL/dw)^2]` over items, each with a label that the model draws.
    movement: (groups, r / groups, c) or None, `-sum_t w dL/dw` over the steps of a training.
    """

    gram: Tensor
    fisher: Tensor
    activity: Tensor
    drift: Tensor | None = None
    gradient: Tensor | None = None
    movement: Tensor | None = None

    def with_inputs_divided(self, scale: Tensor) -> Facts:
        """What they are when input j is divided by `scale[..., j]`, float64 (groups, 1 or rows, c), and column j times it."""
        inverse = 1 / scale[:, 0]
        wide = torch.cat([inverse, torch.ones_like(inverse[:, :1])], 1)
        return replace(
            self,
            gram=self.gram * wide[:, :, None] * wide[:, None, :],
            activity=torch.stack([self.activity[:, 0] * inverse, self.activity[:, 1]], 1),
            gradient=None if self.gradient is None else self.gradient / scale.square(),
        )


def shelved(facts: Mapping[str, Facts]) -> Shelf[Facts]:
    """A copy of `facts` that may be changed."""
    return facts.copy() if isinstance(facts, Shelf) else Shelf(facts)


@dataclass(frozen=True)
class Range:
    """Values an activation took: extremes, a histogram of `counts` over `edges` (one more than counts), and the moving average
    of the extremes of each item."""

    low: float
    high: float
    counts: Tensor
    edges: Tensor
    usual: tuple[float, float]

    @staticmethod
    def of(seen: Histogram) -> Range:
        """What a histogram saw."""
        return Range(seen.low, seen.high, seen.counts, seen.edges, seen.usual)

    @property
    def step(self) -> float:
        """The step of an 8-bit grid over the whole range, zero included."""
        return (max(self.high, 0.0) - min(self.low, 0.0)) / 255


@dataclass(frozen=True)
class Profile:
    """Everything measured in one pass: facts by matrix name, ranges by node name.

    What a recurrent layer reads has facts under the name of the weight that reads it first (`Cell.weights[0]`), as if an
    identity matrix were there, whose inputs are not correlated.
    """

    facts: Mapping[str, Facts] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    items: int = 0


def measure(
    model: Model,
    batches: Iterable[Sequence[Tensor]],
    needs: frozenset[str] = frozenset({"gram", "fisher"}),
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    memory: int = MEMORY,
    temperature: float = TEMPERATURE,
) -> Profile:
    """Measure what `needs` asks for ("gram", "fisher", "gradient"), and the range of every float activation.

    Streams over the flat input batches, a few items at a time, with at most `memory` bytes of Gram matrices; where they need
    more, the matrices are taken in parts, one pass each. `progress` hears the items seen so far.
    Class predictions are softened by `temperature` before the Fisher is drawn from them. Same seed, same answer.
    Raises `DataError` on data or activations that are not finite, and on empty, constant or ill-fitting data.
    """
    parts = _parts(matrices(model), memory) if "gram" in needs else [matrices(model)]
    kept = tuple(batches) if len(parts) > 1 else batches
    facts: Shelf[Facts] = Shelf()
    ranges: dict[str, Range] = {}
    items, size = 0, together(model)
    for index, part in enumerate(parts):
        one = _Pass(model, part, needs, seed, temperature, first=index == 0)
        for piece in (piece for batch in checked(model, kept) for piece in cut(batch, size)):
            deadline.check()
            one.see(piece)
            if progress is not None:
                progress(one.items + index * items)
        items = one.items
        one.add_facts(facts)
        ranges |= one.ranges()
    return Profile(facts, ranges, items)


def rows_of(matrix: Matrix, x: Tensor, at: Tensor | None = None) -> Tensor:
    """The input `x` of `matrix` as `(groups, positions, columns)`; `at` picks positions."""
    c = matrix.convolution
    if c is None:
        return unfold(x, at=at)
    return unfold(x, c.kernel, c.stride, c.padding, c.dilation, c.groups, c.transposed, c.output_padding, at)


def outputs_of(matrix: Matrix, y: Tensor, at: Tensor | None = None) -> Tensor:
    """The output `y` of `matrix` as `(groups, positions, rows / groups)`; the positions are those of `rows_of`."""
    last = y.movedim(1, -1) if matrix.convolution is not None else y
    flat = last.reshape(-1, last.shape[-1]) if at is None else last[torch.unravel_index(at, last.shape[:-1])]
    return flat.reshape(flat.shape[0], matrix.groups, -1).transpose(0, 1)


def sampled(
    matrix: Matrix, shape: Sequence[int], generator: torch.Generator, per_item: int = POSITIONS
) -> Tensor | None:
    """Which positions of an input of `shape` to look at: `per_item` on average, ascending; None for all of them."""
    c = matrix.convolution
    how = () if c is None else (c.kernel, c.stride, c.padding, c.dilation, c.transposed, c.output_padding)
    total = positions(shape, *how)
    wanted = shape[0] * per_item
    if total <= wanted:
        return None
    return torch.randperm(total, generator=generator)[:wanted].sort().values


class _Pass:
    """One pass over the data: what has been added up so far."""

    def __init__(
        self, model: Model, part: Sequence[Matrix], needs: frozenset[str], seed: int, temperature: float, first: bool
    ):
        """first: of all passes; it also looks at ranges, and at what recurrent layers read."""
        self._model, self._needs, self._ranged = model, needs, first
        self._entered = _entered(model) if first and {"gram", "fisher"} <= needs else {}
        self._squares: dict[str, Tensor] = {}
        self._temperature = temperature
        self._judged = watched(model) if needs & {"fisher", "gradient"} else OUTPUTS
        self._by_node = {matrix.node: matrix for matrix in part}
        self._places = torch.Generator().manual_seed(seed)
        self._labels = torch.Generator().manual_seed(seed + 1)
        self._gram: Shelf[Tensor] = Shelf()
        self._activity: dict[str, Tensor] = {}
        self._positions: dict[str, int] = {}
        self._scatters: dict[str, Scatter] = {}
        self._fisher: dict[str, Tensor] = {}
        self._gradient: dict[str, Tensor] = {}
        self._histograms: dict[str, Histogram] = {}
        self._masked: set[str] = set()
        """Nodes whose values were not all finite: such places count as zeros here."""
        self.items = 0

    def see(self, flat: Sequence[Tensor]) -> None:
        self.items += flat[0].shape[0]
        inputs: dict[str, Tensor] = {}
        watched = Finite()

        def visit(node: fx.Node, value: Any) -> Any:
            whole = watched.see(node, value)
            if isinstance(value, Tensor) and value.is_floating_point() and node.op in ("placeholder", "call_function"):
                seen = value
                if not whole:
                    self._masked.add(node.name)
                    seen = torch.where(value.isfinite(), value, 0.0)
                inputs[node.name] = seen
                if self._ranged:
                    self._histograms.setdefault(node.name, Histogram()).update(seen)
            if node.name in self._entered and isinstance(value, Tensor):
                self._add_square(node.name, inputs.get(node.name, value))
            if node.name in self._by_node and "gram" in self._needs:
                self._add_gram(self._by_node[node.name], inputs[node.all_input_nodes[0].name])
            for source in node.all_input_nodes:
                if last[source] is node:
                    inputs.pop(source.name, None)
            return value

        last = _last_readers(self._model)
        if "fisher" in self._needs:
            how = (self._by_node.keys() | self._entered.keys(), self._labels, self._temperature)
            gradients(self._model, flat, *how, visit, self._add_fisher, self._judged)
        else:
            self._model.interpret(flat, visit)
        if "gradient" in self._needs:
            self._add_gradient(flat)

    def _add_gram(self, matrix: Matrix, x: Tensor) -> None:
        seen = rows_of(matrix, x, sampled(matrix, x.shape, self._places))
        rows = with_constant(seen)
        active = torch.stack([seen.abs().sum(1, dtype=torch.float64), (seen != 0).sum(1)], 1)
        differing, before = scatter(seen, len(x)), self._scatters.get(matrix.name)
        self._scatters[matrix.name] = differing if before is None else before + differing
        sums: tuple[tuple[MutableMapping[str, Tensor], Tensor], ...]
        sums = ((self._gram, products(rows, rows)), (self._activity, active))
        for kept, total in sums:
            if matrix.name in kept:
                kept[matrix.name].add_(total)
            else:
                kept[matrix.name] = total
        self._positions[matrix.name] = self._positions.get(matrix.name, 0) + rows.shape[1]

    def _add_square(self, node: str, x: Tensor) -> None:
        """Of what recurrent layers read, (positions, c) in whatever order."""
        rows, name = x.reshape(-1, x.shape[-1]).double(), self._entered[node]
        total = torch.stack([rows.square().sum(0), rows.abs().sum(0), (rows != 0).sum(0).double()])
        self._squares[name] = self._squares[name] + total if name in self._squares else total
        self._positions[name] = self._positions.get(name, 0) + len(rows)

    def _add_fisher(self, node: str, gradient: Tensor) -> None:
        if node in self._entered:
            gradient = _unmasked(node, gradient)
            name, total = self._entered[node], gradient.double().square().flatten(0, -2).sum(0)
            self._fisher[name] = self._fisher.get(name, torch.zeros_like(total)) + total
        if node not in self._by_node:
            return
        matrix = self._by_node[node]
        square = gradient.square() if matrix.convolution is not None else gradient.square().movedim(-1, 1)
        square = _unmasked(node, square)
        total = square.reshape(*square.shape[:2], -1).sum(2).sum(0, dtype=torch.float64)
        self._fisher[matrix.name] = self._fisher.get(matrix.name, torch.zeros_like(total)) + total

    def _add_gradient(self, flat: Sequence[Tensor]) -> None:
        names = {matrix.weight for matrix in self._by_node.values()}
        how = (sorted(names), self._labels, self._temperature, self._judged)
        found = squared_weight_gradients(self._model, flat, *how)
        for matrix in self._by_node.values():  # several may read one weight
            total = to_matrix(found[matrix.weight], matrix.groups, matrix.transposed)
            self._gradient[matrix.name] = self._gradient.get(matrix.name, torch.zeros_like(total)) + total

    def add_facts(self, found: Shelf[Facts]) -> None:
        for matrix in {m.name: m for m in self._by_node.values()}.values():  # one may be applied several times
            gram, active = self._gram.pop(matrix.name, None), self._activity.get(matrix.name)
            gradient = self._gradient.get(matrix.name)
            rows = matrix.shape[1] * matrix.groups if _transposed(matrix) else matrix.shape[0]
            found[matrix.name] = Facts(
                shrunk(gram.div_(self._positions[matrix.name]), self._scatters[matrix.name])
                if gram is not None
                else torch.zeros(matrix.groups, 0, 0),
                self._mean_fisher(matrix.name, rows),
                active / self._positions[matrix.name] if active is not None else torch.zeros(matrix.groups, 2, 0),
                gradient=gradient / self.items if gradient is not None else None,
            )
        for name, sums in self._squares.items():
            mean = sums / self._positions[name]
            alone = torch.cat([mean[0], mean.new_ones(1)]).diag()[None]
            found[name] = Facts(alone, self._mean_fisher(name, len(mean[0])), mean[None, 1:])

    def _mean_fisher(self, name: str, rows: int) -> Tensor:
        """Zero where the loss does not depend on the matrix, one where nothing was asked."""
        if "fisher" not in self._needs:
            return torch.ones(rows, dtype=torch.float64)
        return self._fisher.get(name, torch.zeros(rows, dtype=torch.float64)) / self.items

    def ranges(self) -> dict[str, Range]:
        nodes = [node for node in self._model.graph.nodes if node.name in self._by_node]
        odd = self._masked - {node.all_input_nodes[0].name for node in nodes}  # no grid holds an infinity
        return {n: Range.of(seen) for n, seen in self._histograms.items() if seen.low <= seen.high and n not in odd}


def _unmasked(node: str, gradient: Tensor) -> Tensor:
    """A gradient without what a mask took away: `torch.where(x > 0, x.log(), 0)` has NaN for the gradient of zero. Raises
    `DataError` where nothing is left."""
    if is_finite(gradient):
        return gradient
    kept = gradient.isfinite()
    if not bool(kept.any()):
        raise DataError(
            f"On the calibration data the gradient at '{node}' is NaN or Inf everywhere; check the model's weights and how its "
            "inputs are normalized."
        )
    return torch.where(kept, gradient, 0.0)


def _entered(model: Model) -> dict[str, str]:
    """By node that a recurrent layer reads, the weight under whose name its facts are: one for all directions."""
    nodes = {node.name: node for node in model.graph.nodes}
    read = {nodes[r.node].all_input_nodes[0]: r.layers[0][0].weights[0] for r in recurrences(model)}
    return {node.name: weight for node, weight in read.items() if node.op == "call_function"}


def _transposed(matrix: Matrix) -> bool:
    return matrix.convolution is not None and matrix.convolution.transposed


def _columns(matrix: Matrix) -> int:
    wide = torch.Size(matrix.shape).numel()
    rows = matrix.shape[1] * matrix.groups if _transposed(matrix) else matrix.shape[0]
    return wide // rows


def _parts(found: Sequence[Matrix], memory: int) -> list[tuple[Matrix, ...]]:
    """Runs of matrices whose Gram matrices (float64) fit into `memory` together; at least one matrix each."""
    called: dict[str, tuple[Matrix, ...]] = {}
    for matrix in found:  # one that is applied several times has one Gram matrix
        called[matrix.name] = (*called.get(matrix.name, ()), matrix)
    parts: list[tuple[Matrix, ...]] = []
    held = 0
    for calls in called.values():
        size = 8 * calls[0].groups * (_columns(calls[0]) + 1) ** 2
        if parts and held + size <= memory:
            parts[-1] = (*parts[-1], *calls)
            held += size
        else:
            parts.append(calls)
            held = size
    return parts or [()]


def _last_readers(model: Model) -> dict[fx.Node, fx.Node]:
    return {source: node for node in model.graph.nodes for source in node.all_input_nodes}
