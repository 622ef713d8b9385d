"""From decisions to a fitted model, in execution order.

Each matrix is fitted on what it now sees, earlier layers being already compressed, towards what the *original* network
gave there; where its output joins a residual stream, it also takes back what has gone wrong on that stream. One quadratic
a matrix: from `T = E[t x~^T]` of the wanted outputs t and present inputs x~ follows the free optimum `W* = T H^-1`
(a ridge pulls towards W, its strength chosen on held-out items), the kept columns are refitted to it, and the technique
chooses its value near that, on the smaller matrix that will be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import product
from operator import add
from typing import Any, get_args

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.cells import CellFit
from tersor.errors import InputError
from tersor.feeds import RANGES, Feeds, feeds_of
from tersor.graph.branches import branches, without
from tersor.graph.checked import checked
from tersor.graph.likelihood import divergence
from tersor.graph.lockstep import Here, Lockstep
from tersor.graph.memory import peak_bytes, together
from tersor.graph.model import Model
from tersor.graph.recurrent import recurrences, start_of
from tersor.graph.watched import Watched, watched
from tersor.maths.damage import best_bias
from tersor.maths.gram import Scatter, scatter, shrunk
from tersor.maths.histogram import Histogram
from tersor.maths.ranges import least_damage
from tersor.maths.regression import Moments, best_ridge, matched, moments, optimum
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts, Profile, Range, measure, outputs_of, rows_of, sampled, shelved
from tersor.rewrites.shrink import mask, shrink
from tersor.site import Matrix, groups, matrices, tables
from tersor.target import Compressed, Dynamic, Grid
from tersor.technique import Technique
from tersor.weight import Weight
from tersor.windows import Window, narrowing, repaired, smaller, windows, with_bias

MEMORY = 2 << 30  # bytes of activations held at once
COARSE = 5  # bits of activations, up to which ranges are also chosen by what the next matrix makes of them
ROWS = 2048  # that this is judged on
HELD_OUT = 8  # one item in so many judges, and is fitted to by nobody


@dataclass(frozen=True)
class Decisions:
    """What to do: the blocks that stay, by group name; the technique, by the name of a matrix or embedding; how
    activations are fed, and in how many bits; the residual branches that are left out, by name.

    Below 8 bits what matrices read is rounded (the model's inputs to 8 bits), by static grids that are made on the way, and
    weights are fitted to what they then see. Everything else stays float: no runtime here has such activations. ranges: one of
    `feeds.RANGES`, for static grids; "best" below 8 bits: of least squared error or least damage.
    """

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    techniques: Mapping[str, Technique] = field(default_factory=dict)
    feeds: Feeds = "none"
    drop: tuple[str, ...] = ()
    bits: int = 8
    ranges: str = "best"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or (self.bits < 8 and self.feeds != "static"):
            raise InputError(
                f"Activations of {self.bits} bits were given with feeds {self.feeds!r}; 2 to 8 bits are possible, below 8 with "
                "static feeds."
            )
        if self.feeds not in get_args(Feeds):
            raise InputError(f"There is no kind of feeds {self.feeds!r}; choose one of {', '.join(get_args(Feeds))}.")
        if self.ranges not in RANGES:
            raise InputError(f"There are no ranges {self.ranges!r}; choose one of {', '.join(RANGES)}.")

    @property
    def cuts(self) -> bool:
        """Whether anything is removed."""
        return bool(self.keep or self.drop)

    def cut(self, model: Model) -> Model:
        """`model` without what is removed, its values as they are."""
        narrow = shrink(model, self.keep) if self.keep else model.copy()
        return without(narrow, self.drop) if self.drop else narrow


def fit(
    model: Model,
    batches: Sequence[Sequence[Tensor]],
    profile: Profile,
    decisions: Decisions,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    memory: int = MEMORY,
) -> Compressed:
    """Carry out `decisions` on `model`, with calibration `batches` of flat inputs; no labels.

    Where blocks are dropped, the fit is made with and without matching each channel's variance to the original's; where
    activations have few bits, with ranges of least squared error and with ranges of least damage; the fit with the lowest
    divergence on held-out items is kept. At most `memory` bytes of activations are held: where
    the batches need more, the first items that fit are used. `progress` hears matrices done and in all.
    Cost: a pass of both models over the batches, c^3 + r c^2 a matrix; twice where blocks are dropped, and where
    activations have few bits.
    """
    whole = [tuple(b) for b in checked(model, batches)]
    model, profile, decisions = _counted_first(model, profile, decisions)
    best = Fitted(model, {}, 0.0)
    if decisions.cuts or decisions.techniques:
        pieces = _pieces(whole, max(2, memory // (2 * max(1, peak_bytes(model)))), together(model))
        matching = (False, True) if decisions.cuts else (False,)
        aiming = (False, True) if decisions.bits <= COARSE and decisions.ranges == "best" else (False,)
        ways, each = list(product(matching, aiming)), len(matrices(model))
        for i, how in enumerate(ways):  # one after the other: each has a model of its own
            walk = _Walk(model, pieces, profile, decisions, seed, *how)
            fitted = walk.run(_counting(progress, i, each, each * len(ways)))
            best = fitted if i == 0 or fitted.divergence < best.divergence else best
            del walk, fitted
    small = decisions.cut(best.model) if decisions.cuts else best.model
    for name, weight in best.weights.items():
        small.assign(name, weight.dense())
    if decisions.feeds == "none":
        return Compressed(small, best.weights)
    if decisions.bits < 8:
        return Compressed(small, best.weights, best.feeds)
    ranges = measure(small, whole, frozenset(), seed=seed).ranges
    return Compressed(small, best.weights, feeds_of(small, ranges, decisions.feeds, decisions.ranges))


def _counted_first(model: Model, profile: Profile, decisions: Decisions) -> tuple[Model, Profile, Decisions]:
    """With the blocks gone whose number counts in a softmax or a mean, their readers repaired by the quadratic: a network
    in which they are zero, as on the walk, gives other values there. What is left to do is to be done on that."""
    counting = {g.name for g in groups(model) if g.counted}
    first = {name: kept for name, kept in decisions.keep.items() if name in counting}
    if not first:
        return model, profile, decisions
    facts = shelved(profile.facts)
    for name, window in windows(model, first).items():
        facts[name] = window.of_facts(facts[name])
    rest = {name: kept for name, kept in decisions.keep.items() if name not in first}
    return narrowing(model, profile)(first), replace(profile, facts=facts), replace(decisions, keep=rest)


@dataclass(frozen=True)
class Fitted:
    """A fitted model in the original's shapes, its weights in the shapes to be stored, and the held-out damage."""

    model: Model
    weights: Mapping[str, Weight]
    divergence: float  # from the original's outputs, nats an item
    feeds: Mapping[str, Grid | Dynamic] = field(default_factory=dict)


class _Walk:
    """One walk through the network, fitting each matrix as it comes."""

    def __init__(
        self,
        model: Model,
        pieces: Sequence[Sequence[Tensor]],
        profile: Profile,
        decisions: Decisions,
        seed: int,
        match: bool,
        aim: bool,
    ):
        self._model, self._pieces, self._profile, self._decisions = model, pieces, profile, decisions
        self._match, self._aim = match, aim
        self._places = torch.Generator().manual_seed(seed)
        self._windows = windows(model, decisions.keep)
        self._by_node = {m.node: m for m in matrices(model)}
        chosen = decisions.techniques
        self._recurrent = {
            r.node: r
            for r in recurrences(model)
            if any(name in chosen for cells in r.layers for cell in cells for name in cell.weights)
        }
        self._shared = _read_elsewhere(model)
        self._now = mask(model, decisions.keep) if decisions.keep else model.copy()
        self._weights: dict[str, Weight] = {}
        self._feeds: dict[str, Grid] = {}
        left_out = [branch for branch in branches(model) if branch.name in decisions.drop]
        self._gone = frozenset(name for branch in left_out for name in branch.matrices)
        for branch in left_out:
            _zero(self._now, next(m for m in matrices(model) if m.name == branch.name))

    def run(self, progress: Callable[[], None]) -> Fitted:
        for matrix in {m.name: m for m in self._by_node.values()}.values():
            if matrix.weight in self._shared:
                self._store(matrix, with_bias(self._model, matrix), self._profile.facts[matrix.name].gram, None)
        for table in tables(self._model):
            if table.name in self._decisions.techniques:
                self._look_up(table)
        reading = self._read if self._decisions.bits < 8 else None
        stops = frozenset([*self._by_node, *self._recurrent])
        places = watched(self._model).places
        steps = Lockstep(self._model, self._now, self._pieces, stops, reading, _names(places))
        for here in steps:
            if here.node.name in self._recurrent:
                self._fit_cells(here)
                continue
            matrix = self._by_node[here.node.name]
            if matrix.weight not in self._shared and matrix.name not in self._gone:
                self._fit(matrix, here)
            progress()
        return Fitted(self._now, self._weights, self._judge(*_judged(steps, places)), self._feeds)

    def _look_up(self, table: Matrix) -> None:
        """Choose the rows of an embedding: read one by one, each column alike, so that H is the identity."""
        rows, columns = table.shape
        identity = torch.eye(columns + 1, dtype=torch.float64)[None]
        alike = torch.ones(rows, dtype=torch.float64)
        facts = Facts(identity, alike, torch.ones(1, 2, columns, dtype=torch.float64))
        weight = self._decisions.techniques[table.name].fit(table, self._model.tensor(table.weight), facts)
        self._weights[table.weight] = weight
        self._now.assign(table.weight, weight.dense())

    def _fit_cells(self, here: Here) -> None:
        held = [_held_out(i, len(here.current)) for i in range(len(here.current))]
        recurrence = self._recurrent[here.node.name]
        left = {
            n: t for n, t in self._decisions.techniques.items() if n not in self._weights
        }  # one cell may be called twice
        cells = CellFit(recurrence, self._model, self._now, left, held, self._places)
        before, now = ([(args[0], start_of(args[1])) for args in batches] for batches in here.arguments)
        self._weights |= cells(before, now)

    def _read(self, reader: fx.Node, source: fx.Node, values: Sequence[Tensor]) -> list[Tensor] | None:
        """The values as a matrix reads them, through a grid that is made here where it is the first to read."""
        if reader.name not in self._by_node:
            return None
        if source.name not in self._feeds:
            seen, bits = Histogram(), 8 if source.op == "placeholder" else self._decisions.bits
            for x in values:
                seen.update(x)
            rule = self._decisions.ranges
            found = RANGES["mse" if rule == "best" else rule](Range.of(seen), bits)
            if self._aim and bits <= COARSE and seen.low < seen.high:
                readers = [
                    self._reader(matrix, values) for matrix in self._by_node.values() if self._reads(matrix, source)
                ]
                found = least_damage(readers, found, seen.low, seen.high, bits)
            self._feeds[source.name] = Grid(*found, 0, 2**bits - 1)
        grid = self._feeds[source.name]
        return [grid.round(x) for x in values]

    def _reads(self, matrix: Matrix, source: fx.Node) -> bool:
        return any(user.name == matrix.node and user.all_input_nodes[0] is source for user in source.users)

    def _reader(self, matrix: Matrix, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Some of what a matrix reads, its weight, and what its outputs are worth."""
        each = max(1, ROWS // sum(len(x) for x in values))
        rows = [rows_of(matrix, x, sampled(matrix, x.shape, self._places, each)) for x in values]
        w = to_matrix(self._now.tensor(matrix.weight), matrix.groups, matrix.transposed)
        return torch.cat(rows, 1)[:, :ROWS], w, self._profile.facts[matrix.name].fisher.reshape(w.shape[:2])

    def _fit(self, matrix: Matrix, here: Here) -> None:
        aimed = here.drifted or here.absorbs
        if not (aimed or self._windows[matrix.name].cuts_columns or matrix.name in self._decisions.techniques):
            return
        fit, check, seen = self._moments(matrix, here)
        w, biased = with_bias(self._model, matrix), matrix.bias is not None
        if aimed:
            weigh = self._profile.facts[matrix.name].fisher.reshape(w.shape[:2])
            ridge = best_ridge(w, fit, check, weigh, biased)
            w = w if ridge is None else optimum(w, fit, ridge, biased)
        matching = fit if self._match and biased and here.drifted and not here.joins else None
        gram = shrunk(fit.gram, seen)
        del fit, check  # each as large as the Gram matrix
        self._store(matrix, w, gram, matching)

    def _store(self, matrix: Matrix, w: Tensor, gram: Tensor, match: Moments | None) -> None:
        """Choose the value of what stays of `matrix` near `w` (groups, r, c + 1) and put it into the changing model."""
        window, biased = self._windows[matrix.name], matrix.bias is not None
        v, h = window.of(w), window.square(gram)
        if window.cuts_columns:
            v = repaired(window, w, gram, biased)
        if match is not None:
            seen = window.square(match.gram)  # as it is: what is matched was seen on the same items
            v = matched(v, Moments(seen, window.of(match.cross), _rows(window, match.power), match.count))
        technique = self._decisions.techniques.get(matrix.name)
        small = smaller(matrix, window)
        dense = from_matrix(v[:, :, :-1], small.shape, small.groups, small.transposed).float()
        if technique is not None:
            facts = self._profile.facts[matrix.name]
            fisher = _rows(window, facts.fisher.reshape(w.shape[:2])).reshape(-1)
            gradient, moved = (None if f is None else window.of(f) for f in (facts.gradient, facts.movement))
            known = Facts(h, fisher, window.some_columns(facts.activity), gradient=gradient, movement=moved)
            weight = technique.fit(small, dense, known)
            self._weights[matrix.weight] = weight
            dense = weight.dense()
        chosen = to_matrix(dense, small.groups, small.transposed).double()
        if biased:
            chosen = torch.cat([chosen, (v[:, :, -1] + best_bias(v[:, :, :-1], chosen, h))[..., None]], 2)
        self._assign(matrix, window, chosen, w)

    def _assign(self, matrix: Matrix, window: Window, chosen: Tensor, like: Tensor) -> None:
        whole = window.put_back(chosen, like[:, :, : window.width + (matrix.bias is not None)])
        wide = whole[:, :, : window.width]
        self._now.assign(matrix.weight, from_matrix(wide, matrix.shape, matrix.groups, matrix.transposed).float())
        if matrix.bias is not None:
            self._now.assign(matrix.bias, whole[:, :, -1].reshape(-1).float())

    def _moments(self, matrix: Matrix, here: Here) -> tuple[Moments, Moments, Scatter]:
        """Of the items that are fitted to, of those held out, and how the former differ."""
        sums: list[Moments | None] = [None, None]  # of what is fitted to, and of what is held out
        differing: list[Scatter] = []
        for i, (x, y) in enumerate(zip(here.current, here.wanted, strict=True)):
            at = sampled(matrix, x.shape, self._places)
            rows, held = rows_of(matrix, x, at), _held_out(i, len(here.current))
            more, before = moments(rows, outputs_of(matrix, y, at)), sums[held]
            sums[held] = more if before is None else before.add_(more)
            differing += [] if held else [scatter(rows, len(x))]
        fit, check = sums
        assert fit is not None  # the first piece is always fitted to
        return fit, fit if check is None else check, reduce(add, differing)

    def _judge(self, original: Sequence[Any], now: Sequence[Any]) -> float:
        judged = [i for i in range(len(self._pieces)) if _held_out(i, len(self._pieces))] or range(len(self._pieces))
        items = sum(self._pieces[i][0].shape[0] for i in judged)
        total = 0.0
        for i in judged:
            ours, theirs = pytree.tree_leaves(original[i]), pytree.tree_leaves(now[i])
            total += divergence(ours, theirs, self._pieces[i])
        return total / items


def _names(places: Sequence[Watched] | None) -> frozenset[str]:
    return frozenset() if places is None else frozenset(place.node for place in places)


def _judged(steps: Lockstep, places: Sequence[Watched] | None) -> tuple[Sequence[Any], Sequence[Any]]:
    """By batch, what the original and what the changing model gave where they are compared."""
    if places is None:
        return steps.outputs
    left, right = (
        list(zip(*([place.of(x) for x in seen[place.node]] for place in places), strict=True)) for seen in steps.held
    )
    return left, right


def _zero(model: Model, matrix: Matrix) -> None:
    for name in (matrix.weight, matrix.bias):
        if name is not None:
            model.assign(name, torch.zeros_like(model.tensor(name)))


def _rows(window: Window, values: Tensor) -> Tensor:
    """(groups', r') of (groups, r)."""
    return values[window.group[:, None], window.rows]


def _held_out(index: int, count: int) -> bool:
    return count > 1 and index % HELD_OUT == min(HELD_OUT, count) - 1


def _pieces(whole: Sequence[tuple[Tensor, ...]], most: int, together: int) -> list[tuple[Tensor, ...]]:
    """The first `most` items, in pieces of at most `together`, small enough that some can be held out."""
    items = min(most, sum(batch[0].shape[0] for batch in whole))
    size = max(1, min(together, items // HELD_OUT))
    pieces: list[tuple[Tensor, ...]] = []
    for batch in whole:
        for start in range(0, batch[0].shape[0], size):
            taken = min(size, items)
            if taken > 0:
                pieces.append(tuple(x[start : start + taken] for x in batch))
                items -= pieces[-1][0].shape[0]
    return pieces


def _read_elsewhere(model: Model) -> frozenset[str]:
    """Weights with more than one reader, such as an embedding tied to a head: they must not follow one of them."""
    readers: dict[int, int] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr" and isinstance(tensor := model.tensor(str(node.target)), Tensor):
            readers[tensor.data_ptr()] = readers.get(tensor.data_ptr(), 0) + len(node.users)
    return frozenset(m.weight for m in matrices(model) if readers[model.tensor(m.weight).data_ptr()] > 1)


def _counting(progress: Callable[[int, int], None] | None, index: int, each: int, total: int) -> Callable[[], None]:
    done = index * each

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return count
