"""Fitting the matrices of recurrent layers: each towards what the original's gates had, on what it reads now.

Within a cell the matrix on its input comes first; that on its own state then takes back what the first got wrong, where the
two are simply added. Every gate counts alike (no Fisher), and every step of every item is a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from tersor.graph.model import Model
from tersor.graph.recurrent import Cell, Recurrence
from tersor.maths.damage import best_bias
from tersor.maths.gram import Scatter, scatter, shrunk
from tersor.maths.regression import Moments, best_ridge, moments, optimum
from tersor.profile import POSITIONS, Facts
from tersor.site import Matrix
from tersor.technique import Technique
from tersor.weight import Weight

States = tuple[Tensor, ...]


class CellFit:
    """The fit of one recurrent node. held: of the batches, those that judge ridges and are fitted to by nothing."""

    def __init__(
        self,
        recurrence: Recurrence,
        original: Model,
        now: Model,
        techniques: Mapping[str, Technique],
        held: Sequence[bool],
        generator: torch.Generator,
    ):
        self._recurrence, self._original, self._now = recurrence, original, now
        self._techniques, self._held, self._places = techniques, held, generator

    def __call__(
        self, before: Sequence[tuple[Tensor, States]], here: Sequence[tuple[Tensor, States]]
    ) -> dict[str, Weight]:
        """Chosen weights by name, already put into the changing model. before, here: of each batch what the node reads, and
        its initial states, in the original and in the changing model."""
        chosen: dict[str, Weight] = {}
        layers = self._recurrence.layers
        then = [(self._by_item(x), states) for x, states in before]
        now = [(self._by_item(x), states) for x, states in here]
        for index, cells in enumerate(layers):
            for direction, cell in enumerate(cells):
                chosen |= self._cell(index, direction, cell, then, now)
            if index + 1 < len(layers):
                then = [(self._recurrence.states(index, x, s, self._original)[0], s) for x, s in then]
                now = [(self._recurrence.states(index, x, s, self._now)[0], s) for x, s in now]
        return chosen

    def _by_item(self, x: Tensor) -> Tensor:
        return x if self._recurrence.batch_first else x.transpose(0, 1)

    def _cell(
        self,
        index: int,
        direction: int,
        cell: Cell,
        then: Sequence[tuple[Tensor, States]],
        now: Sequence[tuple[Tensor, States]],
    ) -> dict[str, Weight]:
        chosen: dict[str, Weight] = {}
        wrong: list[Tensor] = [torch.zeros(())] * len(now)
        for part, name in enumerate(cell.weights):
            bias = cell.biases[part] if cell.biases else None
            read: list[tuple[Tensor, Tensor]] = []
            for (x, states), (y, present) in zip(then, now, strict=True):
                if part:
                    x = self._recurrence.states(index, x, states, self._original)[1][direction]
                    y = self._recurrence.states(index, y, present, self._now)[1][direction]
                read.append((x, y))
            wanted = [_gates(self._original, name, bias, x) + w for (x, _), w in zip(read, wrong, strict=True)]
            if name in self._techniques:
                chosen[name] = self._matrix(name, bias, [y for _, y in read], wanted)
            if part == 0:
                wrong = [
                    self._absorbed(w - _gates(self._now, name, bias, y)) for w, (_, y) in zip(wanted, read, strict=True)
                ]
        return chosen

    def _absorbed(self, wrong: Tensor) -> Tensor:
        """Of what is wrong, what the state's matrix can take back: in a GRU not that of the last gate."""
        if self._recurrence.gated(self._original):
            wrong[..., -wrong.shape[-1] // 3 :] = 0
        return wrong

    def _matrix(self, name: str, bias: str | None, read: Sequence[Tensor], wanted: Sequence[Tensor]) -> Weight:
        sums: list[Moments | None] = [None, None]
        differing: list[Scatter] = []
        for x, t, held in zip(read, wanted, self._held, strict=True):
            x, t = self._sampled(x, t)
            more, before = moments(x, t), sums[held]
            sums[held] = more if before is None else before.add_(more)
            differing += [] if held else [scatter(x, len(x))]
        fit, check = sums
        assert fit is not None  # the first piece is always fitted to
        check = fit if check is None else check
        value = self._now.tensor(name)
        offset = torch.zeros(len(value)) if bias is None else self._now.tensor(bias)
        w, biased = torch.cat([value, offset[:, None]], 1).double()[None], bias is not None
        ridge = best_ridge(w, fit, check, torch.ones(w.shape[:2], dtype=torch.float64), biased)
        w = w if ridge is None else optimum(w, fit, ridge, biased)
        gram = shrunk(fit.gram, reduce(add, differing))
        matrix = Matrix(name, self._recurrence.node, name, bias, tuple(value.shape))
        facts = Facts(gram, torch.ones(len(value), dtype=torch.float64), torch.ones(1, 2, value.shape[1]))
        weight = self._techniques[name].fit(matrix, w[0, :, :-1].float(), facts)
        self._now.assign(name, weight.dense())
        if bias is not None:
            moved = w[:, :, -1] + best_bias(w[:, :, :-1], weight.dense().double()[None], gram)
            self._now.assign(bias, moved[0].float())
        return weight

    def _sampled(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1, positions, ...) of (items, steps, ...): POSITIONS of an item on average."""
        rows, goal = x.flatten(0, 1), t.flatten(0, 1)
        if (some := POSITIONS * len(x)) < len(rows):
            at = torch.randperm(len(rows), generator=self._places)[:some].sort().values
            rows, goal = rows[at], goal[at]
        return rows[None], goal[None]


def _gates(model: Model, name: str, bias: str | None, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, model.tensor(name), None if bias is None else model.tensor(bias))
