"""Remove what a model needs least, and make the rest make up for it: no training, no labels.

Channels, neurons, heads (what dependency analysis finds) go until a share of the multiply-accumulates is left; single
weights, n of m, or tiles are zeroed until a share of them is left; or both. In one step or in several, each measured anew
on what the last one left. With `max_drop` it goes on for as long as data held out of calibration keeps the promise. Fits
are kept in the cache: the same command goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor import widths
from tersor.calibrated import Calibrated
from tersor.criteria import criterion_called
from tersor.densities import allocate, curves
from tersor.errors import BudgetError, InputError
from tersor.fitting import Decisions
from tersor.graph.branches import branches as branches_of
from tersor.graph.kinds import KINDS
from tersor.graph.model import Model
from tersor.hub.archive import save_program
from tersor.inputs import amounts
from tersor.inputs.job import Job, Progress, bring, predict_with, quiet, torch_threads
from tersor.maths.pattern import NofM, pattern_called
from tersor.maths.schedule import SCHEDULES, geometric
from tersor.measuring.metrics import Drop, Score, drop
from tersor.narrowing import Keep, Rank, dispensable, narrow, total
from tersor.profile import Profile
from tersor.records import plain
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.permute import arranged
from tersor.site import groups, matrices
from tersor.staircase import rewarded
from tersor.store.files import atomic_write
from tersor.targets import target_called
from tersor.technique import Technique
from tersor.techniques.sparse import Sparse
from tersor.techniques.sparsegpt import SparseGPT

AUTO, RUNTIMES = "auto", ("onnxruntime", "openvino")
SMALLEST, STEPS = 0.1, 22  # where `max_drop` alone ends, and in how many steps: a tenth of what is left each


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates an item; the values of all matrices, and how many of them are not zero."""

    macs: int
    weights: int
    nonzero: int


@dataclass(frozen=True)
class Step:
    """One state on the way: its size, what it lost on held-out data (as `Drop.amount`), whether the promise held."""

    size: Size
    lost: float
    kept: bool


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and its score on evaluation data beside the original's.

    widths: (blocks that stay, blocks before) of every group that was narrowed. densities: by matrix, of those that are sparse.
    dropped: the residual branches that were left out, by the name of their last matrix.
    """

    name: str
    model: Model
    decisions: Decisions
    metric: str
    before: Score
    after: Score
    drop: Drop
    original: Size
    size: Size
    widths: Mapping[str, tuple[int, int]]
    densities: Mapping[str, float]
    dropped: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def module(self) -> Any:
        """A module that takes and gives what the original does."""
        return self.model.module

    def to_json(self) -> dict[str, Any]:
        shown = (
            "name",
            "metric",
            "before",
            "after",
            "drop",
            "original",
            "size",
            "widths",
            "densities",
            "dropped",
            "steps",
        )
        return {field: plain(getattr(self, field)) for field in shown}


def prune(
    model: Any,
    data: Any,
    *,
    macs: float | str | None = None,
    weights: float | str | None = None,
    only: Sequence[str] = (),
    branches: int = 0,
    pattern: str = "anywhere",
    criterion: str = "best",
    schedule: str = "geometric",
    steps: int = 1,
    multiple: int | str = 1,
    max_drop: float | str | None = None,
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = quiet,
) -> Pruned:
    """Prune a trained model, from unlabelled data.

    model, data, metric, eval_data: as `compress` takes them. macs: what is to be left of the multiply-accumulates when
    channels are removed ("2.1x" less, "48%", 0.48). only: of these kinds ("channels", "neurons", "heads", "head_width",
    "residual"; `inspect` says which axis is what), all where empty. weights: what stays of the single weights, in the `pattern`
    "anywhere", "rows", "2:4" or "16x1"; how much of each layer, by damage. branches: how many residual branches (half a
    block of a transformer, a block of a residual network) are left out. criterion: what is worth keeping ("best":
    structured OBS for channels, a search for weights; or "wanda", "magnitude", ...). steps: how many lead there, by
    `schedule` (geometric, linear, cosine, cubic). multiple: what widths should be multiples of
    ("auto": what the runtimes of this machine are seen to reward). max_drop: go only as far
    as this promise holds; alone, channels are removed until it does not. out: a `torch.export` archive (.pt2), which torch
    loads without Tersor and `compress` takes.
    Raises `InputError` for wishes that contradict each other, `BudgetError` where `macs` is out of reach or no step keeps the
    promise, and what `compress` raises for its inputs.
    """
    wish = _wish(macs, weights, tuple(only), branches, pattern, criterion, schedule, steps, multiple, max_drop)
    with torch_threads(threads):
        allowed = 0.0 if wish.allowed is None else wish.allowed
        job = bring(model, data, metric, allowed, eval_data, 1, threads, seed, tuple(exclude), None, progress)
        ground = Calibrated(job, fold_norms(job.model))
        if wish.pattern is not None:
            ground = Calibrated(job, arranged(ground.model, ground.profile, wish.pattern))
        taken, walked = _walk(job, ground, wish)
        pruned = _last_inside(job, ground, taken, walked, wish)
    if out is not None:
        _write(pruned.model, Path(out))
    return pruned


@dataclass(frozen=True)
class _Wish:
    """What was asked for: the shares that are left after each step (empty: not asked for), and how weights become zero."""

    macs: Sequence[float]
    only: Sequence[str]
    weights: Sequence[float]
    branches: Sequence[int]
    sparse: Callable[[float], Technique]
    pattern: NofM | None  # where it fixes the share itself
    rank: Rank
    multiple: int  # 0: to be measured
    allowed: float | None


def _wish(
    macs: float | str | None,
    weights: float | str | None,
    only: Sequence[str],
    branches: int,
    pattern: str,
    criterion: str,
    schedule: str,
    steps: int,
    multiple: int | str,
    max_drop: float | str | None,
) -> _Wish:
    allowed = None if max_drop is None else amounts.drop(max_drop)
    left, density = (None if given is None else amounts.share(given) for given in (macs, weights))
    if schedule not in SCHEDULES:
        raise InputError(f"There is no schedule {schedule!r}; choose of {', '.join(SCHEDULES)}.")
    if unknown := sorted(set(only) - set(KINDS)):
        raise InputError(f"There is no kind of axis {unknown[0]!r}; choose of {', '.join(KINDS)}.")
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1.")
    step = 0 if multiple == AUTO else int(multiple) if str(multiple).isdecimal() else -1
    if step < 0 or multiple in (0, "0"):
        raise InputError(f"multiple is {multiple!r}; it is a number from 1 on, or {AUTO}.")
    places = pattern_called(pattern)
    scored = None if criterion == "best" else criterion_called(criterion)
    one = places(1.0)
    fixed = one if isinstance(one, NofM) else None
    if fixed is not None:
        if density is not None:
            raise InputError(f"The pattern {pattern} says itself how many weights stay; leave out weights.")
        density = fixed.n / fixed.m
    if branches < 0 or (branches and left is not None):
        raise InputError(
            f"branches is {branches}{' and macs is given' if left is not None else ''}; it counts from 0 on, and goes with "
            "weights but not with macs: prune the archive once more for those."
        )
    if left is None and density is None and not branches:
        if allowed is None:
            raise InputError("Nothing says how much to prune; give macs, weights, branches or max_drop.")
        left, schedule, steps = SMALLEST, geometric.__name__, max(steps, STEPS)
    if only and left is None:
        raise InputError(f"only={', '.join(only)} says which axes lose channels, and nothing says how many; give macs.")

    def sparse(share: float) -> Technique:
        where = places(share)
        return SparseGPT(where) if scored is None else Sparse(where, scored)

    shares = SCHEDULES[schedule]
    return _Wish(
        macs=[] if left is None else shares(left, steps),
        only=only or KINDS,
        weights=[] if density is None else [density] * steps if fixed else shares(density, steps),
        branches=range(1, branches + 1) if allowed is not None else [branches] if branches else [],
        sparse=sparse,
        pattern=fixed,
        rank=widths.curves if scored is None else partial(widths.ranked, criterion=scored),
        multiple=step,
        allowed=allowed,
    )


def _walk(job: Job, ground: Calibrated, wish: _Wish) -> tuple[list[Decisions], list[Step]]:
    """The states that keep the promise on held-out data, and all that were looked at."""
    good: list[Decisions] = []
    walked: list[Step] = []
    for decisions in _decided(job, ground, wish):
        small = ground.fit(decisions).model
        lost = drop(job.before_held, job.metric(predict_with(small), job.held), job.metric)
        kept = wish.allowed is None or lost.within(wish.allowed)
        walked.append(Step(size(small), lost.amount, kept))
        if not kept:
            break
        good.append(decisions)
    return good, walked


def _decided(job: Job, ground: Calibrated, wish: _Wish) -> Iterator[Decisions]:
    """The decisions of each step. One that cannot be reached ends a walk that was to go as far as it can."""
    keeps = _keeps(job, ground, wish) if wish.macs else repeat({})
    gone = _dispensed(job, ground, wish)
    found = None
    steps = max(len(wish.macs), len(wish.weights), len(wish.branches))
    for step in range(steps):
        job.progress("choosing what goes", step, steps)
        try:
            keep = next(keeps)
        except BudgetError:
            if step == 0 or wish.allowed is None:
                raise
            return
        techniques: dict[str, Technique] = {}
        drop = gone[: wish.branches[min(step, len(wish.branches) - 1)]] if gone else ()
        if wish.weights:
            dead = {name for branch in branches_of(ground.model) if branch.name in drop for name in branch.matrices}
            names = [m.name for m in matrices(ground.model) if m.name not in {*job.exclude, *dead}]
            if wish.pattern is not None:
                techniques = dict.fromkeys(names, wish.sparse(1.0))
            else:
                found = found or curves(ground.model, ground.profile)
                share = wish.weights[min(step, len(wish.weights) - 1)]
                techniques = {n: wish.sparse(d) for n, d in allocate({n: found[n] for n in names}, share).items()}
        yield Decisions(keep=keep, techniques=techniques, drop=drop)


def _dispensed(job: Job, ground: Calibrated, wish: _Wish) -> tuple[str, ...]:
    if not wish.branches:
        return ()
    job.progress("choosing branches", 0, 0)
    return dispensable(ground.model, [b.inputs for b in job.calibration], wish.branches[-1], job.exclude)


def _keeps(job: Job, ground: Calibrated, wish: _Wish) -> Iterator[Keep]:
    model = ground.model
    found = [g for g in groups(model) if g.refused is None and not g.counted and g.name not in job.exclude]
    names = [g.name for g in found if g.kind in wish.only]
    if not names:
        kinds = ", ".join(dict.fromkeys(g.kind for g in found))
        raise InputError(
            f"Of the kinds asked for ({', '.join(wish.only)}) no axis of this model can be pruned, only {kinds}."
            if found
            else "No axis of this model can be pruned; `tersor inspect` says why. Ask for weights instead of macs."
        )

    def refit(keep: Keep) -> tuple[Model, Profile]:
        small = ground.fit(Decisions(keep=keep)).model
        return small, ground.measured(small)

    batches = [batch.inputs for batch in job.calibration]
    step = wish.multiple or _measured_multiple(job)
    budgets = [share * total(model) for share in wish.macs]
    return narrow(model, batches, ground.profile, names, budgets, refit=refit, rank=wish.rank, step=step)


def _measured_multiple(job: Job) -> int:
    job.progress("timing widths", 0, 0)
    with TemporaryDirectory(prefix="tersor-") as scratch:
        return rewarded([target_called(file, "fp32") for file in RUNTIMES], job.threads, Path(scratch))


def _last_inside(
    job: Job, ground: Calibrated, good: Sequence[Decisions], walked: Sequence[Step], wish: _Wish
) -> Pruned:
    """The last of the good states that keeps the promise on evaluation data as well."""
    for decisions in reversed(good):
        job.progress("judging", 0, 0)
        small = ground.fit(decisions).model
        after = job.metric(predict_with(small), job.evaluation)
        lost = drop(job.before, after, job.metric)
        if wish.allowed is None or lost.within(wish.allowed):
            return _pruned(job, ground.model, small, decisions, after, lost, walked)
    least = min((step.lost for step in walked), default=0.0)
    raise BudgetError(
        f"No step kept the promise of {job.max_drop:.4g}; the least lost was {least:.4g}, on held-out data. Allow a larger "
        "max_drop, take more and smaller steps, or give more data."
    )


def _pruned(
    job: Job, model: Model, small: Model, decisions: Decisions, after: Score, lost: Drop, walked: Sequence[Step]
) -> Pruned:
    blocks = {group.name: group.blocks for group in groups(model)}
    weights = {m.name: small.tensor(m.weight) for m in matrices(small)}
    return Pruned(
        name=job.name,
        model=small,
        decisions=decisions,
        metric=job.metric.name,
        before=job.before,
        after=after,
        drop=lost,
        original=size(model),
        size=size(small),
        widths={n: (len(kept), blocks[n]) for n, kept in decisions.keep.items() if len(kept) < blocks[n]},
        densities={n: int(weights[n].count_nonzero()) / weights[n].numel() for n in decisions.techniques},
        dropped=decisions.drop,
        steps=tuple(walked),
    )


def size(model: Model) -> Size:
    """Of the matrices of a model; a weight that is read twice counts once."""
    weights = {m.weight: model.tensor(m.weight) for m in matrices(model)}.values()
    return Size(total(model), sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights))


def _write(model: Model, out: Path) -> None:
    with TemporaryDirectory(prefix="tersor-") as scratch:
        archive = Path(scratch) / "model.pt2"
        save_program(model.program(), archive)
        atomic_write(out, archive.read_bytes())
