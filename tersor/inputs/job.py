"""What a user asked for, found, checked and split: the input of the pipeline."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.deadline import Deadline
from tersor.errors import DataWarning, InputError
from tersor.graph import faithful
from tersor.graph.branches import branches
from tersor.graph.model import Model
from tersor.graph.naming import plain_name
from tersor.graph.original import Original
from tersor.inputs import amounts, data, metrics, models
from tersor.inputs.encoder import as_arrays
from tersor.inputs.reading import plausible
from tersor.maths.bits import as_array
from tersor.measuring.batches import Batches
from tersor.measuring.certainty import cautions
from tersor.measuring.likeness import watch
from tersor.measuring.metrics import Metric, Predict, Score, compares, predictor, prepared
from tersor.memory import CONTAINER, Room
from tersor.report import Watched
from tersor.site import cells, groups, matrices, tables

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and of how much (0: unknown)."""

CALIBRATION_ITEMS = 1024
HELD_ITEMS = 1024
COMPARED = 64  # items of DATA on which graph and module are compared


@dataclass(frozen=True)
class Job:
    """Everything that one `compress` works on.

    original: the user's own module, which the scores before and every comparison are taken from; `model` is its graph.
    calibration: what ranges, Gram matrices and repairs are computed from, a part of training, which recovery may use; held:
    what the search compares plans on; evaluation: what exported artifacts are judged on, and nothing else. The last three
    are disjoint; `apart` says whether evaluation was given as data of its own.
    """

    name: str
    model: Model
    original: Predict
    training: Batches
    calibration: Batches
    held: Batches
    evaluation: Batches
    apart: bool
    metric: Metric
    before: Score  # of the original, on `evaluation`
    before_held: Score  # of the original, on `held`
    max_drop: float
    batch: int
    threads: int
    seed: int
    exclude: tuple[str, ...]
    deadline: Deadline
    scoring: float  # seconds that it took to score the original on `evaluation`
    progress: Progress
    room: Room = CONTAINER  # the memory that may be held


def quiet(stage: str, done: int, total: int) -> None:
    """The progress of a caller who does not want to see any."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads meanwhile (0: as it is): its sums depend on how many share them."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bring(
    model: Any,
    training: Any,
    metric: Any,
    max_drop: float | str,
    eval_data: Any,
    batch: int,
    threads: int,
    seed: int,
    exclude: tuple[str, ...],
    time_limit: float | str | Deadline | None,
    progress: Progress,
    memory_limit: int | str | None = None,
) -> Job:
    """Find, check and split what the user named. Raises an `InputError` that says what is wrong with it."""
    if batch < 1:
        raise InputError(f"The batch size is {batch}; it must be at least 1.")
    amounts.seed(seed)
    limit = amounts.deadline(time_limit)
    allowed = amounts.drop(max_drop)
    room = CONTAINER if memory_limit is None else Room(amounts.nbytes(memory_limit))
    found = metrics.bring(metric)
    progress("reading the model", 0, 0)
    brought = models.bring(model)
    room.check(models.nbytes(brought))
    progress("reading the data", 0, 0)
    if brought.tokenise is not None:
        training = as_arrays(training, brought.tokenise, "DATA", scored=False)
        eval_data = None if eval_data is None else as_arrays(eval_data, brought.tokenise, "EVAL-DATA", scored=True)
    source = data.bring(training, room=room)
    captured, module = models.captured_whole(brought, data.example(source, brought))
    exclude = tuple(plain_name(name) for name in exclude)
    _refuse_strangers(exclude, captured)
    everything = data.batches(source, captured)
    faithful.check(captured, module, _few(everything), (batch, len(everything.parts[0])))
    for oddity in _odd_labels(everything, captured, found):
        warnings.warn(oddity, DataWarning, stacklevel=2)
    if eval_data is None:
        everything, evaluation = data.split(everything, seed)
    else:
        evaluation = data.batches(data.bring(eval_data, "EVAL-DATA", room), captured)
    training, held = everything.split(min(0.25, HELD_ITEMS / len(everything)), seed + 1)
    calibration = _some(training, seed)
    original = predict_as_brought(module, captured)
    evaluation = prepared(found, evaluation, original)
    held = prepared(found, held, original)
    counted = _counted(original, len(evaluation.parts) + len(held.parts), partial(progress, "evaluating the original"))
    begin = monotonic()
    before = found(counted, evaluation)
    scoring = monotonic() - begin
    before_held = found(counted, held)
    for caution in cautions(found, before, evaluation, allowed):
        warnings.warn(caution, DataWarning, stacklevel=2)
    count = threads or torch.get_num_threads()
    return Job(
        brought.name,
        captured,
        original,
        training,
        calibration,
        held,
        evaluation,
        eval_data is not None,
        found,
        before,
        before_held,
        allowed,
        batch,
        count,
        seed,
        exclude,
        limit,
        scoring,
        progress,
        room,
    )


def calibrating_on_all(job: Job) -> Job:
    """The job for who chooses nothing by held-out data: all training data may be calibrated on."""
    training = Batches((*job.training.parts, *job.held.parts))
    return replace(job, training=training, calibration=_some(training, job.seed))


def _refuse_strangers(exclude: Sequence[str], model: Model) -> None:
    """Raises `InputError` where a name to leave alone is not that of a matrix, a group or a branch."""
    if not exclude:
        return
    known = [m.name for m in matrices(model)]
    known += [t.name for t in (*tables(model), *cells(model))]
    known += [g.name for g in groups(model) if g.name not in known]
    known += [b.name for b in branches(model) if b.name not in known]
    for name in exclude:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4) or known[:3]
            raise InputError(
                f"exclude names {name!r}, which is not a layer of this model; similar names: {', '.join(near)}. `tersor "
                "inspect` lists all."
            )


def _counted(predict: Predict, total: int, progress: Callable[[int, int], None]) -> Predict:
    """The same, telling how many calls were made of a `total` that a metric usually makes."""
    done = 0

    def told(*inputs: Any) -> Any:
        nonlocal done
        progress(min(done, total), total)
        done += 1
        return predict(*inputs)

    return told


def predict_with(model: Model) -> Predict:
    """The captured model, run by torch, as a metric calls it."""
    return predictor(_on_arrays(model.run), model.outputs)


def predict_as_brought(module: Original, model: Model) -> Predict:
    """The user's own module, as a metric calls it."""
    return predictor(_on_arrays(module), model.outputs)


def _on_arrays(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[np.ndarray, ...]]:
    def on_arrays(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(as_array(t) for t in run(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)))

    return on_arrays


def _odd_labels(batches: Batches, model: Model, metric: Metric) -> Iterator[str]:
    """What labels hardly can be meant to be, and would be taken for without a word."""
    first, answers = batches.parts[0], model.run(*model.example)
    labels, read = first.labels, first.inputs[0]
    if isinstance(labels, Tensor) and compares(metric, batches) and not plausible(labels, answers):
        given = ", ".join(str(tuple(answer.shape)) for answer in answers)
        yield (
            f"The labels {tuple(labels.shape)} fit no output of the model ({given} for a batch of {len(answers[0])}), and "
            f"{metric.name} does not read them; where they are an input, bring the model with an example of all its inputs."
        )
    whole = (
        isinstance(labels, Tensor) and labels.ndim > 1 and not (labels.is_floating_point() or read.is_floating_point())
    )
    if whole and all(torch.equal(b.labels, b.inputs[0].to(b.labels.dtype)) for b in batches):
        yield (
            "The labels are the inputs themselves; a model that predicts the next token needs them moved by one place: the "
            "label of place i is the token at i + 1."
        )


def _few(batches: Batches) -> tuple[Tensor, ...]:
    """Some items, from the beginning."""
    return batches.parts[0].pick(slice(0, COMPARED)).inputs


def fingerprint(job: Job) -> dict[str, str]:
    """Hashes of the inputs: of all items, whatever their order, and of what is calibrated on, in its order."""
    parts = [job.training, job.held] if job.apart else [job.training, job.held, job.evaluation]
    total = sum(part.unordered() for part in parts) % (1 << 256)
    return {"items": f"{total:064x}", "calibration": job.calibration.relabel(lambda _: None).digest()}


def watched(job: Job, after: Predict) -> tuple[Watched, ...]:
    """What became of each of several outputs, where the metric does not look at them all, on evaluation data."""
    if len(job.model.outputs) == 1 or compares(job.metric, job.evaluation):
        return ()
    return watch(job.original, after, job.evaluation, None if job.metric.own else False)


def _some(training: Batches, seed: int) -> Batches:
    """Items to calibrate on, the same draw for the same seed, without what is far larger than the others."""
    training = data.without_outliers(training)
    few = len(training) <= CALIBRATION_ITEMS
    return (training if few else training.split(CALIBRATION_ITEMS / len(training), seed + 2)[1]).shuffled(seed + 3)
