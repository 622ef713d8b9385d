"""The table from which a plan is chosen: damage exact per layer, bytes exact, seconds measured.

Seconds come from whole-model times on the target: one per uniform precision, and one at a uniform smaller width from
which follows what part of the time is arithmetic (it shrinks with the multiply-accumulates) and what part is dispatch (it
does not). The arithmetic part is shared out by multiply-accumulates, the dispatch part evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from torch import Tensor

from tersor import deadline
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.maths.damage import damage
from tersor.maths.unfold import to_matrix
from tersor.plan import Option, Pair, Table
from tersor.profile import Facts, Profile
from tersor.site import Group, Matrix, Site, groups, matrices, sites
from tersor.technique import Technique
from tersor.widths import curves

FLOAT = "fp32"
SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # of the blocks of a group that stay


@dataclass(frozen=True)
class Speeds:
    """Measured seconds per batch of the whole model: all float, all int8, and the part of it that is arithmetic."""

    floating: float
    int8: float
    arithmetic: float = 1.0  # share in [0, 1]


@dataclass(frozen=True)
class Widths:
    """What cutting one group costs: `damage[i]` where `kept[i]` blocks stay; `kept[0]` is all of them."""

    group: Group
    kept: tuple[int, ...]
    damage: tuple[float, ...]
    order: tuple[int, ...]  # of removal, the first to go first

    @property
    def row(self) -> str:
        """Its row in the table; a group is often called like the matrix that makes it."""
        return f"width of {self.group.name}"

    def blocks(self, count: int) -> tuple[int, ...]:
        """The `count` blocks that stay."""
        return tuple(sorted(self.order[len(self.order) - count :]))


def price(
    model: Model,
    profile: Profile,
    techniques: Sequence[Technique],
    speeds: Speeds,
    widths: Sequence[Widths] = (),
    exclude: Sequence[str] = (),
) -> Table:
    """A row of options for every matrix (left in float, or each technique) and for every group (its widths).

    Damage is in nats of the output divergence, seconds per batch of the batch size that `speeds` were measured at.
    """
    cost = macs(model)
    total, count = sum(cost.values()), len(cost)
    share = {name: speeds.arithmetic * part / total + (1 - speeds.arithmetic) / count for name, part in cost.items()}
    rows: dict[str, list[Option]] = {}
    for site in sites(model):
        for matrix in site.matrices:
            rows[matrix.name] = _precisions(
                model, profile, site, matrix, () if matrix.name in exclude else techniques, speeds, share[matrix.name]
            )
    arithmetic = {name: speeds.int8 * speeds.arithmetic * part / total for name, part in cost.items()}
    pairs = []
    alone = {each.group.name: [(0.0, 0.0)] * len(each.kept) for each in widths}
    for matrix in matrices(model):
        touching = [each for each in widths if any(m.tensor == matrix.weight for m in each.group.members)][:2]
        size = float(model.tensor(matrix.weight).numel())
        if len(touching) == 2:
            pairs.append(_pair(touching[0], touching[1], arithmetic[matrix.name], size))
        for each in touching if len(touching) == 1 else ():
            alone[each.group.name] = [
                (seconds + arithmetic[matrix.name] * saved, nbytes + size * saved)
                for (seconds, nbytes), saved in zip(alone[each.group.name], _saved(each), strict=True)
            ]
    for each in widths:
        rows[each.row] = [
            Option(str(kept), lost, *spent)
            for kept, lost, spent in zip(each.kept, each.damage, alone[each.group.name], strict=True)
        ]
    return Table(rows, pairs, nbytes=_unpriced_bytes(model))


def without(table: Table, name: str) -> Table:
    """The table without the options of that name, but for rows that have no other."""
    rows = {row: [o for o in options if o.name != name] or list(options) for row, options in table.rows.items()}
    return replace(table, rows=rows)


def limited(table: Table, widths: Sequence[Widths], least: float) -> Table:
    """The table without the options that leave a group less than the share `least` of its blocks."""
    left = {each.row: [i for i, k in enumerate(each.kept) if k >= least * each.group.blocks] for each in widths}
    rows = {name: [row[i] for i in left[name]] if name in left else row for name, row in table.rows.items()}
    pairs = [
        replace(pair, seconds=_picked(pair.seconds, *both), nbytes=_picked(pair.nbytes, *both))
        for pair in table.pairs
        for both in [(left[pair.first], left[pair.second])]
    ]
    return replace(table, rows=rows, pairs=pairs)


def weighed(table: Table, widths: Sequence[Widths], factors: Mapping[str, float]) -> Table:
    """The table with the damage of narrowing each group times its factor (`Sensitivity.factors`), or the median."""
    usual = median(factors.values())
    times = {each.row: factors.get(each.group.name, usual) for each in widths}
    rows = {
        name: [replace(option, damage=option.damage * times.get(name, 1.0)) for option in row]
        for name, row in table.rows.items()
    }
    return replace(table, rows=rows)


def _picked(
    costs: Sequence[Sequence[float]], rows: Sequence[int], columns: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(costs[i][j] for j in columns) for i in rows)


def _precisions(
    model: Model,
    profile: Profile,
    site: Site,
    matrix: Matrix,
    techniques: Sequence[Technique],
    speeds: Speeds,
    share: float,
) -> list[Option]:
    w, facts = model.tensor(matrix.weight), profile.facts[matrix.name]
    options = [Option(FLOAT, 0.0, speeds.floating * share, w.numel() * w.element_size())]
    for technique in techniques:
        deadline.check()
        fitted = technique.fit(matrix, w, facts)
        lost = damage(_as_matrix(fitted.dense() - w, matrix), facts.gram, facts.fisher)
        lost += feed_damage(_as_matrix(w, matrix), facts, profile.ranges[site.activation].step)
        options.append(Option(repr(technique), lost, speeds.int8 * share, fitted.nbytes))
    return options


def feed_damage(w: Tensor, facts: Facts, step: float) -> float:
    """Damage of reading the input through a grid of that step: uniform noise of variance step^2 / 12 per input.

    `w` is (groups, rows, columns). The noise of one input adds `step^2 / 12 * sum_i g_i |W_i|^2 / 2`.
    """
    g = facts.fisher.reshape(w.shape[0], -1)
    return float(0.5 * step**2 / 12 * (g * w.double().square().sum(-1)).sum())


def _as_matrix(w: Tensor, matrix: Matrix) -> Tensor:
    return to_matrix(w, matrix.groups, matrix.transposed)


def widths(model: Model, profile: Profile, exclude: Sequence[str] = ()) -> tuple[Widths, ...]:
    """The widths on offer for every prunable group, with the damage of each from one structured OBS sweep."""
    open_groups = [g for g in groups(model) if g.refused is None and not g.counted and g.name not in exclude]
    swept = curves(model, profile, open_groups)
    offers = []
    for group in (g for g in open_groups if g.name in swept):
        kept = tuple(dict.fromkeys(max(1, round(share * group.blocks)) for share in SHARES))
        lost = tuple(swept[group.name].damage[group.blocks - k] for k in kept)
        offers.append(Widths(group, kept, lost, swept[group.name].order))
    return tuple(offers)


def _pair(first: Widths, second: Widths, seconds: float, size: float) -> Pair:
    """What narrowing saves (negative) in the seconds and bytes of a matrix that lies between two groups."""
    saved = [[(1 + a) * (1 + b) - 1 for b in _saved(second)] for a in _saved(first)]
    return Pair(
        first.row,
        second.row,
        tuple(tuple(seconds * x for x in row) for row in saved),
        tuple(tuple(size * x for x in row) for row in saved),
    )


def _saved(widths: Widths) -> list[float]:
    return [kept / widths.group.blocks - 1.0 for kept in widths.kept]


def _unpriced_bytes(model: Model) -> int:
    """Parameters that no row prices: biases, norms, embeddings."""
    priced = {matrix.weight for matrix in matrices(model)}
    return sum(t.numel() * t.element_size() for name, t in model.module.named_parameters() if name not in priced)
