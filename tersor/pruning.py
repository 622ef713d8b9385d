"""Remove what a model needs least, and make the rest make up for it: no labels, and no training unless it is asked for.

Channels, neurons, heads (what dependency analysis finds) go until a share of the multiply-accumulates is left; single
weights, n of m, or tiles are zeroed until a share of them is left; or both. In one step or in several, each measured anew
on what the last one left. With `max_drop` it goes on for as long as data held out of calibration keeps the promise. With a
recovery each step is followed by training, and the next one prunes what was trained. Fits and trainings are kept in the
cache: the same command goes on after a kill.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from tersor.calibrated import Calibrated
from tersor.deadline import Deadline, TimeUp
from tersor.densities import allocate, curves
from tersor.errors import BudgetError, DataError, DataWarning, InputError, LimitWarning
from tersor.fitting import Decisions
from tersor.graph.branches import branches as branches_of
from tersor.graph.model import Model
from tersor.inputs import amounts, models
from tersor.inputs.job import Job, Progress, bring, predict_with, quiet, torch_threads, watched
from tersor.left_alone import EXCLUDED, layers_of, left_alone, unnarrowed
from tersor.limits import Heard, limited, stopped_early
from tersor.maths.unfold import to_matrix
from tersor.measuring.metrics import Drop, Score, drop
from tersor.narrowing import Keep, dispensable, narrow, thinned, total, unfelt
from tersor.profile import Profile
from tersor.pruned import Pruned, Step, size
from tersor.recovering import Recovering
from tersor.recovery.course import History
from tersor.recovery.many import group
from tersor.recovery.wish import Recovery
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.permute import arranged
from tersor.scratch import scratch
from tersor.sensed import Sensitivity
from tersor.site import Group, budgeted, groups, matrices
from tersor.staircase import rewarded
from tersor.store.files import refuse_file
from tersor.store.programs import ENDINGS, refuse_foreign, write_model
from tersor.target import Compressed
from tersor.targets import target_called
from tersor.technique import Technique
from tersor.wishes import Wish, wish_of

NAMED = 3  # layers in a message
RUNTIMES = ("onnxruntime", "openvino")


def prune(
    model: Any,
    data: Any,
    *,
    macs: float | str | None = None,
    weights: float | str | None = None,
    only: Sequence[str] = (),
    branches: int | str = 0,
    pattern: str = "anywhere",
    criterion: str = "best",
    schedule: str = "geometric",
    steps: int = 1,
    multiple: int | str = 1,
    max_drop: float | str | None = None,
    recover: Recovery | str | None = None,
    rewind: Any = None,
    sensitivity: Sensitivity | str | Path | None = None,
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    time_limit: float | str | Deadline | None = None,
    memory_limit: int | str | None = None,
    progress: Progress = quiet,
) -> Pruned:
    """Prune a trained model, from unlabeled data.

    model, data, metric, eval_data: as for `compress`. macs: multiply-adds to keep, by removing channels ("2.1x" fewer, "48%",
    0.48). only: kinds of prunable groups to use ("channels", "neurons", "heads", "head_width", "residual"; `inspect` shows the
    kind of each axis), all if empty. weights: single weights to keep, in the `pattern` "anywhere", "rows", "2:4" or "16x1";
    how many of each layer is chosen by predicted loss. branches: number of residual branches (half a block of a transformer, a
    block of a residual network) to remove. criterion: pruning criterion ("best": structured OBS for channels, a search for
    weights; or "wanda", "magnitude", ...). steps: number of pruning steps, by `schedule` (geometric, linear, cosine, cubic).
    multiple: channel alignment ("auto": the multiple that the runtimes of this machine run fastest). max_drop: maximum allowed
    metric drop, before which pruning stops; alone, channels are removed up to it. recover: how to train after each step
    ("2epochs", "10m", or a `Recovery`), with the original as the teacher. rewind: an earlier checkpoint of the same network (a
    module, or its spec): before each training the remaining weights take its values (a lottery ticket). sensitivity: the
    result of `sensitivity` for the channels of this model, or its file; widths are proposed by it as well. time_limit: maximum
    time ("10m"), of which only the last evaluation is not a part; with `max_drop` the last step within it is the result. out: a
    `torch.export` archive (.pt2), which torch loads without Tersor and `compress` takes; or an ONNX file (.onnx).
    Raises `InputError` for arguments that contradict each other, `BudgetError` if `macs` is out of reach, or no step is within
    `max_drop` or ends in time, and what `compress` raises for its inputs.
    """
    if out is not None:
        refuse_file(Path(out), ENDINGS)
        refuse_foreign(Path(out))
    training = recover if isinstance(recover, Recovery) else Recovery.of(recover)
    wish = wish_of(
        macs, weights, tuple(only), branches, pattern, criterion, schedule, steps, multiple, max_drop, sensitivity
    )
    if training is None and (wish.moved or rewind is not None):
        what = "The criterion movement" if wish.moved else "rewind"
        raise InputError(f"{what} needs a training, but recover is not given; give recover, for example 2epochs.")
    limit, heard = amounts.deadline(time_limit), Heard(progress)
    with torch_threads(threads):
        allowed = 0.0 if wish.allowed is None else wish.allowed
        with limited(limit, heard, group().count == 1):
            job = bring(
                model, data, metric, allowed, eval_data, 1, threads, seed, tuple(exclude), limit, heard, memory_limit
            )
            ground = Calibrated(job, fold_norms(job.model), needs=wish.needs)
            if wish.pattern is not None and rewind is None:  # early values stand in the order they were learned in
                ground = Calibrated(job, arranged(ground.model, ground.profile, wish.pattern), needs=wish.needs)
            early = None if rewind is None else _early(rewind, job)
            states = _states(job, ground, wish) if training is None else _rounds(job, ground, wish, training, early)
            taken, walked = _walk(job, states, wish, heard)
        pruned = _last_inside(job, ground.model, taken, walked, wish)
    if out is not None and group().rank == 0:
        write_model(Path(out), Compressed(pruned.model))
    return pruned


@dataclass(frozen=True)
class _State:
    """A step's outcome; `remake` gives its model again, from the cache."""

    remake: Callable[[], Model]
    widths: Mapping[str, int]  # blocks that are left of the groups that were narrowed, by their names in the original
    sparse: Sequence[str] = ()  # matrices with zeros
    dropped: tuple[str, ...] = ()
    trained: tuple[History, ...] = ()


def _walk(job: Job, states: Iterator[_State], wish: Wish, heard: Heard) -> tuple[list[_State], list[Step]]:
    """The states that keep the promise on held-out data, and all that were looked at; with a promise, those until the time
    was up."""
    good: list[_State] = []
    walked: list[Step] = []
    try:
        for state in states:
            small = state.remake()
            lost = drop(job.before_held, job.metric(predict_with(small), job.held), job.metric)
            kept = wish.allowed is None or lost.within(wish.allowed)
            walked.append(Step(size(small), lost.amount, kept))
            if not kept:
                break
            good.append(state)
    except TimeUp:
        if wish.allowed is None or not good:
            raise
        steps = f"step {len(good)}" if len(good) > 1 else "the first step"
        warnings.warn(stopped_early(job.deadline, heard, f"that of {steps}"), LimitWarning, stacklevel=3)
    return good, walked


def _states(job: Job, ground: Calibrated, wish: Wish) -> Iterator[_State]:
    """Of every step, refitted from the original."""
    for decisions in _decided(job, ground, wish):
        remake = partial(_fitted, ground, decisions)
        widths = {name: len(blocks) for name, blocks in decisions.keep.items()}
        yield _State(remake, widths, tuple(decisions.techniques), decisions.drop)


def _fitted(ground: Calibrated, decisions: Decisions) -> Model:
    return ground.fit(decisions).model


def _rounds(job: Job, ground: Calibrated, wish: Wish, recover: Recovery, early: Model | None) -> Iterator[_State]:
    """Of every step, trained; each goes on from what the last one left, or from `early` values of what is left."""
    whole = total(ground.model)
    dropped: tuple[str, ...] = ()
    trained: tuple[History, ...] = ()
    blocks = _blocks(ground.model)
    for step in range(max(len(wish.macs), len(wish.weights), len(wish.branches))):
        one = wish.only_step(step, whole / total(ground.model), len(dropped))
        if wish.moved:
            model, sums = Recovering(job, ground, recover).moved(ground.model)
            by_matrix = {m.name: to_matrix(sums[m.name], m.groups, m.transposed) for m in matrices(model)}
            ground = Calibrated(job, model, by_matrix, wish.needs)
        found = list(_decided(job, ground, one))
        if not found:
            return
        recovering = Recovering(job, ground, recover, begun=early is None)
        fitted = ground.fit(found[0])
        if early is not None:
            early = found[0].cut(early)
            fitted = rewound(fitted, early)
        remake = partial(_trained, recovering, fitted)
        small = remake()
        dropped, trained = (*dropped, *found[0].drop), (*trained, recovering.history)
        known = _known(blocks, ground.model)
        blocks |= {known[name]: len(kept) for name, kept in found[0].keep.items() if name in known}
        yield _State(remake, dict(blocks), tuple(found[0].techniques), dropped, trained)
        ground = Calibrated(job, small, needs=wish.needs)


def _blocks(model: Model) -> dict[str, int]:
    return {g.name: g.blocks for g in groups(model) if g.refused is None}


def _known(blocks: Mapping[str, int], now: Model) -> dict[str, str]:
    """By name of a group of the model as it is now, its name in the original, of whose groups `blocks` are left: a group of one
    block is none any more, and others of the same layer move up."""
    found: dict[str, str] = {}
    for name in _blocks(now):
        layer = name.partition("#")[0]
        free = (
            n for n, left in blocks.items() if left > 1 and n.partition("#")[0] == layer and n not in found.values()
        )
        found[name] = next(free, name)
    return {name: then for name, then in found.items() if then in blocks}


def rewound(fitted: Compressed, early: Model) -> Compressed:
    """The `early` values of what is left of a model: those that stay where weights became zero, all of the rest.

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", arXiv:1912.05671.
    """
    values = dict(early.tensors())
    weights = {name: weight.nearest(values[name]) for name, weight in fitted.weights.items()}
    model = fitted.model.copy()
    for name, now in list(model.tensors()):  # a bias that a training added was nothing early on
        value = weights[name].dense() if name in weights else values.get(name, torch.zeros_like(now))
        model.assign(name, value)
    return Compressed(model, weights, fitted.feeds)


def _trained(recovering: Recovering, fitted: Compressed) -> Model:
    return recovering(fitted).model


def _decided(job: Job, ground: Calibrated, wish: Wish) -> Iterator[Decisions]:
    """The decisions of each step. One that cannot be reached ends a walk that was to go as far as it can."""
    spare = _unfelt(job, ground) if wish.predicts else ()
    gone = _dispensed(job, ground, wish, spare)
    keeps = _keeps(job, ground, wish, gone, spare) if wish.macs else repeat({})
    found = None
    steps = max(len(wish.macs), len(wish.weights), len(wish.branches))
    for step in range(steps):
        job.progress("choosing what to prune", step, steps)
        try:
            keep = next(keeps)
        except BudgetError:
            if step == 0 or wish.allowed is None:
                raise
            return
        techniques: dict[str, Technique] = {}
        drop = gone[: wish.branches[min(step, len(wish.branches) - 1)]] if gone and not wish.macs else gone
        if wish.weights:
            dead = {name for branch in branches_of(ground.model) if branch.name in drop for name in branch.matrices}
            names = [m.name for m in matrices(ground.model) if m.name not in {*job.exclude, *dead, *spare}]
            if wish.pattern is not None:
                techniques = dict.fromkeys(names, wish.sparse(1.0))
            else:
                found = found or curves(ground.model, ground.profile)
                share = wish.weights[min(step, len(wish.weights) - 1)]
                techniques = {n: wish.sparse(d) for n, d in allocate({n: found[n] for n in names}, share).items()}
        yield Decisions(keep=keep, techniques=techniques, drop=drop)


def _unfelt(job: Job, ground: Calibrated) -> tuple[str, ...]:
    """Matrices that stay as they are, for nothing tells what they are worth. Raises `DataError` where that is all of them."""
    found = unfelt(ground.model, [batch.inputs for batch in job.calibration], ground.profile)
    if not found:
        return ()
    more = len(found) - NAMED
    where = ", ".join(f"'{name}'" for name in found[:NAMED]) + (f" and {more} more" if more > 0 else "")
    seen = (
        f"On the calibration data no gradient reaches {where}, and yet the outputs depend on it: something after it is "
        "saturated (a sigmoid at 1, a clip)"
    )
    wanted = "give a model that returns the values before the saturation, or other data."
    if len(found) == len(matrices(ground.model)):
        raise DataError(f"{seen}, so the loss of pruning cannot be predicted; {wanted}")
    warnings.warn(
        f"{seen}, so the loss cannot be predicted and nothing there is pruned; {wanted}", DataWarning, stacklevel=2
    )
    return found


def _dispensed(job: Job, ground: Calibrated, wish: Wish, spare: Sequence[str]) -> tuple[str, ...]:
    if not (wish.branches or wish.thin):
        return ()
    job.progress("choosing branches to remove", 0, 0)
    batches = [batch.inputs for batch in job.calibration]
    if wish.branches:
        return dispensable(ground.model, batches, wish.branches[-1], job.exclude)
    names, budget = _names(job, ground.model, wish, spare), wish.macs[-1] * total(ground.model)
    return thinned(
        ground.model,
        batches,
        ground.profile,
        names,
        budget,
        measured=ground.measured,
        rank=wish.rank,
        step=max(1, wish.multiple),
        spare=job.exclude,
        factors=wish.sensitivity.factors(names) if wish.sensitivity else None,
    )


def _names(job: Job, model: Model, wish: Wish, spare: Sequence[str]) -> list[str]:
    """The groups that may be narrowed, and that not only matrices of `spare` read. Raises `InputError` where there are none."""
    left = {m.weight for m in matrices(model) if m.name in spare}
    found = [g for g in groups(model) if budgeted(model, g) and g.name not in job.exclude]
    found = [g for g in found if not left or not left.issuperset(_deciding(g))]
    names = [g.name for g in found if g.kind in wish.only]
    if not names:
        kinds = ", ".join(dict.fromkeys(g.kind for g in found))
        whole = [g for g in groups(model) if g.refused is None and g.counted and not budgeted(model, g)]
        if found:
            raise InputError(
                f"This model has no prunable axis of the requested kinds ({', '.join(wish.only)}), only {kinds}."
            )
        why = f": the width of '{whole[0].name}' matters to {', '.join(whole[0].counted[:NAMED])}" if whole else ""
        raise InputError(
            f"No axis of this model can be pruned for a budget{why}; `tersor inspect` says more. Give weights instead of "
            "macs."
        )
    return names


def _deciding(group: Group) -> list[str]:
    """The weights that tell what its blocks are worth: those that read it, else those that make it."""
    read = [m.tensor for m in group.members if m.role == "reads"]
    return read or [m.tensor for m in group.members if m.role == "produces"]


def _keeps(job: Job, ground: Calibrated, wish: Wish, gone: tuple[str, ...], spare: Sequence[str]) -> Iterator[Keep]:
    """The blocks that stay after each step, in the model without the branches that are gone."""
    model, names = ground.model, _names(job, ground.model, wish, spare)

    def refit(keep: Keep) -> tuple[Model, Profile]:
        small = ground.fit(Decisions(keep=keep, drop=gone)).model
        return small, ground.measured(small)

    start = refit({}) if gone else (model, ground.profile)
    batches = [batch.inputs for batch in job.calibration]
    step = wish.multiple or _measured_multiple(job)
    budgets = [share * total(model) for share in wish.macs]
    return narrow(
        model,
        batches,
        ground.profile,
        names,
        budgets,
        refit=refit,
        rank=wish.rank,
        step=step,
        start=start,
        factors=wish.sensitivity.factors(names) if wish.sensitivity else None,
    )


def _measured_multiple(job: Job) -> int:
    job.progress("timing layer widths", 0, 0)
    with scratch() as folder:
        return rewarded([target_called(file, "fp32") for file in RUNTIMES], job.threads, folder)


def _last_inside(job: Job, original: Model, good: Sequence[_State], walked: Sequence[Step], wish: Wish) -> Pruned:
    """The last of the good states that keeps the promise on evaluation data as well."""
    for state in reversed(good):
        job.progress("evaluating", 0, 0)
        small = state.remake()
        after = job.metric(predict_with(small), job.evaluation)
        lost = drop(job.before, after, job.metric)
        if wish.allowed is None or lost.within(wish.allowed):
            return _pruned(job, original, small, state, after, lost, walked, wish)
    least = min((step.lost for step in walked), default=0.0)
    raise BudgetError(
        f"No step is within the allowed drop of {job.max_drop:.4g}; the smallest drop was {least:.4g}, on held-out data. Allow "
        "a larger max_drop, take more and smaller steps, or give more data."
    )


def _pruned(
    job: Job, original: Model, small: Model, state: _State, after: Score, lost: Drop, walked: Sequence[Step], wish: Wish
) -> Pruned:
    blocks = _blocks(original)
    weights = {m.name: small.tensor(m.weight) for m in matrices(small)}
    return Pruned(
        name=job.name,
        model=small,
        metric=job.metric.name,
        before=job.before,
        after=after,
        drop=lost,
        original=size(original),
        size=size(small),
        widths={n: (left, blocks[n]) for n, left in state.widths.items() if left < blocks.get(n, 0)},
        densities={n: int(weights[n].count_nonzero()) / weights[n].numel() for n in state.sparse if n in weights},
        dropped=state.dropped,
        steps=tuple(walked),
        trained=state.trained,
        outputs=watched(job, predict_with(small)),
        left_alone=left_alone(original, _spared(job, original, state, wish)),
    )


def _spared(job: Job, model: Model, state: _State, wish: Wish) -> dict[str, str]:
    """The layers of which nothing could go, and why."""
    touched = {name for branch in branches_of(model) if branch.name in state.dropped for name in branch.matrices}
    touched.update(state.sparse)
    why = unnarrowed(model, _names(job, model, wish, ())) if wish.macs else {}
    unfelt = {matrix.name for matrix in matrices(model)} if wish.weights else set()
    reasons = {}
    for layer in layers_of(model):
        if layer.name not in touched and (layer.name in why or not wish.macs):
            if layer.name in job.exclude:
                reasons[layer.name] = EXCLUDED
            elif layer.name in unfelt:
                reasons[layer.name] = "no gradient reached it, so the loss of pruning it cannot be predicted"
            else:
                zeroed = "single weights are pruned in linear layers and convolutions only"
                reasons[layer.name] = why.get(layer.name, zeroed if wish.weights else "not in a removed branch")
    return reasons


def _early(rewind: Any, job: Job) -> Model:
    """The early network, folded as the original was. Raises `InputError` where it is another network."""
    brought = models.bring(rewind)
    args, kwargs = job.model.arguments(job.model.example)
    early = fold_norms(models.captured(brought, (args, kwargs)))
    ours, theirs = ({n: tuple(t.shape) for n, t in model.tensors()} for model in (fold_norms(job.model), early))
    if ours != theirs:
        other = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
        raise InputError(
            f"rewind is a different network: it differs from the model at '{other}'; give an earlier state of the same model."
        )
    return early
