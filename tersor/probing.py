"""How much each part of a model matters: the metric when one place alone is made smaller.

Three granularities. *Channels*: blocks of one prunable group go, in the order of a structured OBS sweep, and the matrices
that read them are refitted to what stays. *Bits*: one matrix is stored in fewer bits by GPTQ. *Weights*: some of the
weights of one matrix become zero, by what each is worth with the others repaired. Everything else stays
as it was, nothing is trained, and the metric is taken on data held out of calibration, so the curves rank places; what they
cost together is the planner's question. `damage` is what the quadratic predicts for the same change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.calibrated import Calibrated
from tersor.deadline import Deadline
from tersor.errors import InputError
from tersor.graph.likelihood import divergence
from tersor.graph.model import Model
from tersor.graph.watched import judged, watched
from tersor.inputs import amounts
from tersor.inputs.job import Job, Progress, bring, quiet, torch_threads
from tersor.limits import Heard, limited
from tersor.maths.bits import as_array
from tersor.maths.damage import best_bias, damage
from tersor.maths.pattern import Anywhere
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Score, predictor
from tersor.rewrites.fold_norms import fold_norms
from tersor.sensed import GRANULARITIES, Point, Sensitivity
from tersor.site import Matrix, groups, matrices
from tersor.technique import Technique
from tersor.techniques.gptq import GPTQ
from tersor.techniques.sparse import Sparse
from tersor.widths import curves
from tersor.windows import narrowing, with_bias

SHARES = (0.125, 0.25, 0.5, 0.75)  # of the blocks of a group that go
BITS = (8.0, 6.0, 4.0, 3.0, 2.0)
ZEROS = (0.5, 0.7, 0.8, 0.9)  # of the weights of a matrix
ITEMS = 256


def sensitivity(
    model: Any,
    data: Any,
    *,
    metric: Any = "accuracy",
    granularities: Sequence[str] = GRANULARITIES,
    items: int = ITEMS,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    time_limit: float | str | Deadline | None = None,
    memory_limit: int | str | None = None,
    progress: Progress = quiet,
) -> Sensitivity:
    """How much the metric drops when each layer alone is pruned or quantized.

    model, data, metric: as for `compress`; data is split by `seed`, and the metric is evaluated on `items` held-out items.
    Cost: one pass over the calibration items, and one over the evaluated items per point. time_limit: maximum time ("10m"),
    after which there is no result.
    Raises `InputError` for an unknown granularity, `BudgetError` where the time is up, and what `compress` raises for its
    inputs.
    """
    unknown = sorted(set(granularities) - set(GRANULARITIES))
    if unknown or not granularities:
        raise InputError(
            f"There is no granularity {', '.join(unknown) or '(none)'}; choose one of {', '.join(GRANULARITIES)}."
        )
    limit, heard = amounts.deadline(time_limit), Heard(progress)
    with torch_threads(threads), limited(limit, heard):
        job = bring(model, data, metric, 0.0, None, 1, threads, seed, tuple(exclude), limit, heard, memory_limit)
        ground = Calibrated(job, fold_norms(job.model))
        held = job.held.take(items)
        score, outputs = _judged(job, job.model, held)
        before = _entries(score)
        changes = [change for granularity in granularities for change in CHANGES[granularity](ground, job)]
        points = []
        for done, (place, granularity, amount, changed, lost) in enumerate(changes):
            heard("evaluating one layer at a time", done, len(changes))
            score, now = _judged(job, changed(), held)
            points.append(Point(place, granularity, amount, _entries(score), lost, _apart(outputs, now) / len(held)))
    return Sensitivity(job.name, job.metric.name, job.metric.lower, len(held), before, tuple(points))


Seen = list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]  # inputs and outputs of each call


def _judged(job: Job, model: Model, items: Batches) -> tuple[Score, Seen]:
    """The metric, and what the model was seen to give meanwhile."""
    seen: Seen = []
    watch = watched(model)

    def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        given = tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)
        out = model.run(*given)
        seen.append((given, out if watch.places is None else judged(model, given, watch)))
        return tuple(as_array(t) for t in out)

    return job.metric(predictor(run, model.outputs), items), seen


def _apart(before: Seen, now: Seen) -> float:
    """Nats between the outputs, of all items."""
    return sum(divergence(a, b, inputs) for (inputs, a), (_, b) in zip(before, now, strict=True))


def _entries(score: Any) -> dict[str, float]:
    return dict(score) if isinstance(score, Mapping) else {"": score}


Change = tuple[
    str, str, float, Callable[[], Model], float
]  # place, granularity, amount, what makes the changed model, predicted damage


def _narrower(ground: Calibrated, job: Job) -> Iterator[Change]:
    model = ground.model
    found = [g for g in groups(model) if g.refused is None and not g.counted and g.name not in job.exclude]
    swept = curves(model, ground.profile, found)
    narrower = narrowing(model, ground.profile)
    for group in (g for g in found if g.name in swept):
        for share in SHARES:
            gone = min(group.blocks - 1, round(share * group.blocks))
            if gone > 0:
                keep = swept[group.name].kept(group.blocks - gone)
                lost = swept[group.name].damage[gone]
                yield group.name, "channels", gone / group.blocks, partial(narrower, {group.name: keep}), lost


def _replaced(
    granularity: str, amounts: Sequence[float], technique: Callable[[float], Technique]
) -> Callable[[Calibrated, Job], Iterator[Change]]:
    def changes(ground: Calibrated, job: Job) -> Iterator[Change]:
        for matrix in (m for m in matrices(ground.model) if m.name not in job.exclude):
            for amount in amounts:
                change = _Replaced(ground, matrix, technique(amount))
                yield matrix.name, granularity, amount, change, change.damage()

    return changes


@dataclass(frozen=True)
class _Replaced:
    """The model with one matrix as a technique makes it, its bias repaired."""

    ground: Calibrated
    matrix: Matrix
    technique: Technique

    def value(self) -> tuple[Tensor, Tensor]:
        """(groups, r, c + 1) before and after, the bias last."""
        m, model = self.matrix, self.ground.model
        weight, facts = model.tensor(m.weight), self.ground.profile.facts[m.name]
        before = with_bias(model, m)
        w, bias = before[:, :, :-1], before[:, :, -1]
        v = to_matrix(self.technique.fit(m, weight, facts).dense(), m.groups, m.transposed).double()
        moved = best_bias(w, v, facts.gram) if m.bias is not None else 0.0
        return before, torch.cat([v, (bias + moved)[..., None]], 2)

    def damage(self) -> float:
        before, after = self.value()
        facts = self.ground.profile.facts[self.matrix.name]
        return damage(after - before, facts.gram, facts.fisher)

    def __call__(self) -> Model:
        changed = self.ground.model.copy()
        _assign(changed, self.matrix, self.value()[1])
        return changed


CHANGES = {
    "channels": _narrower,
    "bits": _replaced("bits", BITS, lambda bits: GPTQ(bits=int(bits))),
    "weights": _replaced("weights", ZEROS, lambda zeros: Sparse(Anywhere(1 - zeros))),
}


def _assign(model: Model, matrix: Matrix, whole: Tensor) -> None:
    """Put (groups, r, c + 1), the bias last, into a model."""
    weight = from_matrix(whole[:, :, :-1], matrix.shape, matrix.groups, matrix.transposed)
    model.assign(matrix.weight, weight.float())
    if matrix.bias is not None:
        model.assign(matrix.bias, whole[:, :, -1].reshape(-1).float())
