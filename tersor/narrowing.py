"""How wide each group should be, by what narrower models are seen to do.

The quadratic is local. Take one group of a plain chain down to a single channel and it says that no more is lost than what
the readers of that group give, when in truth nothing gets past; a branch beside a residual stream can be lost. So widths
are proposed by the quadratic, under several limits of how much of its width any group may lose, and the proposals are
*tried*: blocks removed, the readers repaired by the quadratic, outputs compared with the original's. A large cut goes
in several steps, each one measured again on the network that the last one left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tersor import deadline
from tersor.errors import BudgetError
from tersor.fitting import Decisions, fit
from tersor.graph.branches import branches, without
from tersor.graph.likelihood import divergence
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.graph.watched import OUTPUTS, judged, watched
from tersor.maths.obs import Sweep
from tersor.profile import Profile, measure
from tersor.site import Group, Matrix, groups, matrices
from tersor.units import several
from tersor.widths import allocate, curves, scaled
from tersor.windows import Narrowing, narrowing

LEAST = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)  # of a group's blocks, in one step
JUDGED = 256  # items
COUNTS = (0, 1, 2, 4, 8, 16)  # of branches that are left out
Keep = dict[str, tuple[int, ...]]
Refit = Callable[[Keep], tuple[Model, Profile]]
"""The model without the blocks that are not kept, fitted, and what is measured of it."""
Rank = Callable[[Model, Profile, Sequence[Group]], Mapping[str, Sweep]]
"""The order in which the blocks of each group go, and what each width costs: `curves`, or `ranked` by a criterion."""


def narrow(
    model: Model,
    batches: Sequence[Sequence[Tensor]],
    profile: Profile,
    names: Sequence[str],
    budgets: Sequence[float],
    *,
    refit: Refit,
    rank: Rank = curves,
    step: int = 1,
    start: tuple[Model, Profile] | None = None,
    factors: Mapping[str, float] | None = None,
) -> Iterator[Keep]:
    """The blocks to keep of the groups `names`, at no more than each of `budgets` multiply-accumulates an item, in turn.

    profile: of `model` on the calibration `batches`. budgets: descending; each goes on from the widths before, on the
    network that `refit` makes of them and what it measures there. rank: orders and prices the blocks. Widths are
    multiples of `step`. start: what the first widths are cut from, and what was measured of it, where that is no longer
    `model`. factors: by group, how many times more was lost than predicted (`Sensitivity.factors`): curves scaled by them
    make proposals as well. Raises `BudgetError` where a budget cannot be reached.
    Cost a budget: a sweep a group, and for each of up to `len(LEAST)` proposals a copy and a pass over `JUDGED` items, twice
    with factors.
    """
    small, seen = start or (model, profile)
    keep: Keep = {}
    for budget in budgets:
        if keep:
            small, seen = refit(keep)
        keep = _composed(keep, _proposed(narrowing(small, seen), rank, model, batches, names, budget, step, factors))
        yield keep


def refitting(model: Model, batches: Sequence[Sequence[Tensor]], profile: Profile, seed: int = 0) -> Refit:
    """The plainest `Refit`: a fit and a pass over the batches."""

    def refit(keep: Keep) -> tuple[Model, Profile]:
        small = fit(model, batches, profile, Decisions(keep=keep), seed=seed).model
        return small, measure(small, batches, seed=seed)

    return refit


def dispensable(
    model: Model, batches: Sequence[Sequence[Tensor]], count: int, spare: Sequence[str] = ()
) -> tuple[str, ...]:
    """The `count` residual branches without which the outputs stay nearest to what they were, found one by one.

    Nothing is repaired meanwhile. spare: names that stay. Raises `BudgetError` where there are fewer. Cost: a copy and a
    pass over `JUDGED` items for each branch, `count` times.
    """
    names = [branch.name for branch in branches(model) if branch.name not in spare]
    if len(names) < count:
        found = several(len(names), "residual branch", "residual branches")
        raise BudgetError(f"The model has {found} that can be removed; {count} were requested.")
    lost = Lost(model, batches)
    gone: tuple[str, ...] = ()
    for _ in range(count):
        left = (name for name in names if name not in gone)
        gone = min(((*gone, name) for name in left), key=lambda some: lost(without(model, some)))
    return gone


def thinned(
    model: Model,
    batches: Sequence[Sequence[Tensor]],
    profile: Profile,
    names: Sequence[str],
    budget: float,
    *,
    measured: Callable[[Model], Profile],
    rank: Rank = curves,
    step: int = 1,
    spare: Sequence[str] = (),
    factors: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """The residual branches to leave out, perhaps none, so that with the groups `names` narrowed to `budget` the outputs
    stay nearest to what they were.

    Branches go in the order of what each alone is missed; 1, 2, 4, ... of them are tried for as long as it helps. measured:
    gives the profile of a model without some. spare: names that stay. Cost: a pass over `JUDGED` items a branch; then what
    `narrow` costs, and a profile, for each number that is tried.
    """
    lost = Lost(model, batches)
    found = [branch.name for branch in branches(model) if branch.name not in spare]
    order = sorted(found, key=lambda name: lost(without(model, (name,))))
    best: tuple[str, ...] = ()
    least = float("inf")
    for count in (c for c in COUNTS if c <= len(order)):
        gone = tuple(order[:count])
        small = without(model, gone) if gone else model
        narrower = narrowing(small, measured(small) if gone else profile)
        try:
            now = lost(narrower(_proposed(narrower, rank, model, batches, names, budget, step, factors)))
        except BudgetError:
            continue
        if now >= least:
            break
        best, least = gone, now
    return best


def unfelt(model: Model, batches: Sequence[Sequence[Tensor]], profile: Profile) -> tuple[str, ...]:
    """The matrices that no damage can be predicted for, though the outputs change without them: on these data no gradient
    reaches them at all, since something behind them is saturated. Cost: a pass over `JUDGED` items for each candidate.
    """
    still = [m for m in matrices(model) if not profile.facts[m.name].fisher.any()]
    lost = Lost(model, batches) if still else None
    return tuple(m.name for m in still if lost is not None and lost(_zeroed(model, m)) > 0)


def _zeroed(model: Model, matrix: Matrix) -> Model:
    changed = model.copy()
    for name in (matrix.weight, matrix.bias):
        if name is not None:
            changed.assign(name, torch.zeros_like(model.tensor(name)))
    return changed


def total(model: Model) -> int:
    """Multiply-accumulates of all matrices, an item."""
    return sum(macs(model).values())


def _proposed(
    narrower: Narrowing,
    rank: Rank,
    original: Model,
    batches: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    budget: float,
    step: int,
    factors: Mapping[str, float] | None,
) -> Keep:
    """Of the proposals within `budget`, the one whose model is nearest to the original on some of the items."""
    model = narrower.model
    open_groups = [g for g in groups(model, narrower.dependency) if g.refused is None and g.name in names]
    lost = Lost(original, batches)
    swept = {**rank(model, narrower.profile, open_groups)}
    for group in (g for g in open_groups if g.counted and g.name not in swept):
        swept[group.name] = _tried(narrower, lost, group)
    proposals: list[Keep] = []
    for damage in (swept, scaled(swept, factors)) if factors else (swept,):
        for least in LEAST:
            try:
                proposals.append(allocate(model, damage, open_groups, budget, least, step))
            except BudgetError:
                if not proposals:
                    raise
                break
    distinct = [keep for i, keep in enumerate(proposals) if keep not in proposals[:i]]
    if len(distinct) == 1:
        return distinct[0]
    return min(distinct, key=lambda keep: lost(narrower(keep)))


def _tried(narrower: Narrowing, lost: Lost, group: Group) -> Sweep:
    """Of a group whose width counts elsewhere, so that removing is not zeroing: blocks in the order of what each loses alone,
    and what all widths lose, as seen."""
    every = range(group.blocks)
    alone = [lost(narrower({group.name: [k for k in every if k != b]})) for b in every]
    order = tuple(sorted(every, key=alone.__getitem__))
    damage = [0.0]
    for gone in range(1, group.blocks):
        deadline.check()
        seen = lost(narrower({group.name: sorted(order[gone:])})) / lost.items
        damage.append(max(damage[-1], seen))
    return Sweep(order, (*damage, damage[-1]))


class Lost:
    """How far the outputs of a model are from the original's on `items`, `JUDGED` of them or so, in nats."""

    def __init__(self, original: Model, batches: Sequence[Sequence[Tensor]]):
        self._judged = _some(batches, JUDGED)
        self.items = sum(len(batch[0]) for batch in self._judged)
        watch = watched(original)
        self._outputs = watch.places is None
        self._wanted = [judged(original, batch, watch) for batch in self._judged]

    def __call__(self, model: Model) -> float:
        pairs = zip(self._wanted, self._judged, strict=True)
        watch = OUTPUTS if self._outputs else watched(model)
        return sum(divergence(wanted, judged(model, x, watch), x) for wanted, x in pairs)


def _composed(before: Keep, now: Keep) -> Keep:
    """Blocks of the original, where `now` counts among those that `before` left."""
    return before | {n: tuple(before[n][b] for b in kept) if n in before else kept for n, kept in now.items()}


def _some(batches: Sequence[Sequence[Tensor]], items: int) -> list[tuple[Tensor, ...]]:
    """About `items` of the items, from all over the batches."""
    count = sum(len(batch[0]) for batch in batches)
    stride = max(1, count // items)
    return [tuple(x[::stride] for x in batch) for batch in batches if len(batch[0])]
