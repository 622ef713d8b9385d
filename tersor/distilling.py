"""Teach one model what another knows: the student's own shape, the teacher's answers.

The student is any module that takes and gives what the teacher does: a narrower or shallower network, one that `prune` made,
one that was never trained, one that has its teacher's early layers; or the teacher itself, with a share of its width and
depth. Labels are used where the loss names them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibrated import Calibrated
from tersor.deadline import Deadline
from tersor.errors import InputError
from tersor.graph.likelihood import categorical, normalised
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.inputs import amounts, models
from tersor.inputs.job import Job, Progress, bring, predict_with, quiet, torch_threads, watched
from tersor.left_alone import LeftAlone, layers_of, left_alone, unnarrowed, unread
from tersor.limits import Heard, limited
from tersor.measuring.metrics import Drop, Score, drop
from tersor.records import plain
from tersor.recovering import Recovering
from tersor.recovery.course import History
from tersor.recovery.many import group
from tersor.recovery.wish import Recovery
from tersor.report import Watched
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.reuse import reuse as take_early
from tersor.site import groups
from tersor.store.files import refuse_file
from tersor.store.programs import ENDINGS, refuse_foreign, write_model
from tersor.students import scaled
from tersor.target import Compressed


@dataclass(frozen=True)
class Distilled:
    """A trained student, and its scores on evaluation data next to the teacher's.

    untrained: the student's score as it came; drop: from the teacher to the trained student. macs: of teacher and student.
    left_alone: what the training did not change, and why; of a share of the teacher also what could not be made smaller.
    outputs: what became of those that the metric does not look at.
    """

    name: str
    teacher: str
    model: Model
    metric: str
    before: Score
    untrained: Score
    after: Score
    drop: Drop
    macs: tuple[int, int]
    parameters: tuple[int, int]
    trained: History
    outputs: tuple[Watched, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def module(self) -> Any:
        """A module that takes and gives what the student did."""
        return self.model.module

    def to_json(self) -> dict[str, Any]:
        hidden = ("model",)
        return {name: plain(value) for name, value in vars(self).items() if name not in hidden}


def distil(
    student: Any,
    data: Any,
    *,
    teacher: Any,
    width: float | str = 1.0,
    depth: float | str = 1.0,
    reuse: bool = False,
    recover: Recovery | str = "2epochs",
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    time_limit: float | str | Deadline | None = None,
    memory_limit: int | str | None = None,
    progress: Progress = quiet,
) -> Distilled:
    """Train `student` to give the outputs of `teacher` (knowledge distillation).

    student, teacher, data, metric, eval_data: as for `compress`; both models have the same inputs and outputs. width, depth: if
    the student is None, the share of each of the teacher's axes ("50%", "2x" fewer, 0.5) and of its residual branches that it
    has; it starts with what structured OBS leaves of the teacher. reuse: the student starts with the teacher's weights in the
    layers, counted from the inputs, in which both agree; they are trained like the others. recover: length and settings of the
    training ("2epochs", "10m", or a `Recovery`). The result is the best state after an epoch, on held-out data.
    time_limit: maximum time for everything ("10m"); where the training does not end within it, nothing comes out, and the same
    call continues it. out: a `torch.export` archive (.pt2), which torch loads without Tersor and `compress` takes; or an ONNX
    file (.onnx).
    Raises `InputError` where the two do not fit together, `BudgetError` where the time is up, and what `compress` raises for
    its inputs.
    """
    if out is not None:
        refuse_file(Path(out), ENDINGS)
        refuse_foreign(Path(out))
    how = recover if isinstance(recover, Recovery) else Recovery.of(recover)
    if how is None:
        raise InputError("recover is none, but a student has to be trained; give 2epochs, 10m, or a Recovery.")
    shares = amounts.share(width), amounts.share(depth)
    if (student is None) == (shares == (1.0, 1.0)):
        raise InputError(
            "A student is a model of its own or a smaller copy of its teacher; name a student, or give width or depth, but not "
            "both."
        )
    if student is None and reuse:
        raise InputError("A smaller copy of the teacher starts from the teacher's weights anyway; leave out reuse.")
    limit, heard = amounts.deadline(time_limit), Heard(progress)
    with torch_threads(threads), limited(limit, heard, group().count == 1):
        job = bring(teacher, data, metric, 0.0, eval_data, 1, threads, seed, (), limit, heard, memory_limit)
        if student is None:
            name, like, ground = job.name, job.model, Calibrated(job, fold_norms(job.model))
            small = scaled(ground, [batch.inputs for batch in job.calibration], *shares).model
        else:
            name, like = _brought(student, job)
            small = _begun(like, job.model) if reuse else fold_norms(like)
            ground = Calibrated(job, small)
        untrained = job.metric(predict_with(small), job.evaluation)
        recovering = Recovering(job, ground, how, like, begun=student is None)
        trained = recovering(Compressed(small)).model
        after = job.metric(predict_with(trained), job.evaluation)
    if out is not None and group().rank == 0:
        write_model(Path(out), Compressed(trained))
    return Distilled(
        name=name,
        teacher=job.name,
        model=trained,
        metric=job.metric.name,
        before=job.before,
        untrained=untrained,
        after=after,
        drop=drop(job.before, after, job.metric),
        macs=(sum(macs(job.model).values()), sum(macs(trained).values())),
        parameters=(_parameters(job.model), _parameters(trained)),
        trained=recovering.history,
        outputs=watched(job, predict_with(trained)),
        left_alone=_left_alone(trained, job.model if student is None and shares[0] < 1 else None),
    )


def _left_alone(student: Model, teacher: Model | None) -> tuple[LeftAlone, ...]:
    """What is not trained (buffers, what nothing reads), and the layers that a narrower teacher has whole."""
    spared = {}
    if teacher is not None:
        open_groups = [
            g.name for g in groups(teacher) if g.refused is None and not g.counted and g.kind != "head_width"
        ]
        known = {layer.name for layer in layers_of(student)}
        spared = {name: why for name, why in unnarrowed(teacher, open_groups).items() if name in known}
    trained = {name for name, _ in student.module.named_parameters()} - unread(student)
    return tuple(each for each in left_alone(student, spared) if each.name in spared or each.name not in trained)


def _brought(student: Any, job: Job) -> tuple[str, Model]:
    """A student's name, and what it computes. Raises `InputError` where that is not what the teacher does."""
    brought = models.bring(student)
    example = job.model.arguments(job.model.example)
    if brought.example is None and isinstance(brought.module, nn.Module) and not example[1]:
        names = list(inspect.signature(brought.module.forward).parameters)[: len(example[0])]
        if all(isinstance(x, Tensor) for x in example[0]) and _elsewhere(names, job.model.inputs):
            raise InputError(
                f"The student takes {', '.join(names)} and its teacher {', '.join(job.model.inputs)}; a student must take its "
                "teacher's inputs in the teacher's order."
            )
    captured = models.captured(brought, example)
    _refuse_strangers(captured, job.model)
    return brought.name, captured


def _begun(student: Model, teacher: Model) -> Model:
    """The student, folded, with its teacher's early layers. Raises `InputError` where it has none of them."""
    small, taken = take_early(fold_norms(student), fold_norms(teacher))
    if not taken:
        raise InputError(
            "reuse was given, but the student's first layer is not like its teacher's; make them alike, or leave out reuse."
        )
    return small


def _refuse_strangers(student: Model, teacher: Model) -> None:
    """Raise `InputError` where two models do not take or do not give the same, of the same names in the same order."""
    inputs = [_said(model.inputs, model.example) for model in (student, teacher)]
    if _elsewhere(student.inputs, teacher.inputs) or _kinds(student.example) != _kinds(teacher.example):
        raise InputError(
            f"The student takes {inputs[0]} and its teacher {inputs[1]}; a student must take its teacher's inputs in the "
            "teacher's order."
        )
    try:
        ours, theirs = (model.run(*teacher.example) for model in (student, teacher))
    except Exception as cause:  # such as numbers of words that it has no row for
        raise InputError(
            f"The student cannot take its teacher's example input ({' '.join(str(cause).split())[:200]}); a student must "
            "take all that its teacher does."
        ) from cause
    if _elsewhere(student.outputs, teacher.outputs) or _kinds(ours) != _kinds(theirs):
        raise InputError(
            f"The student gives {_said(student.outputs, ours)} where the teacher gives {_said(teacher.outputs, theirs)}; a "
            "student must give its teacher's outputs in the teacher's order."
        )
    for name, one, other in zip(teacher.outputs, ours, theirs, strict=True):
        if categorical(other, teacher.example) and _shares(one) != _shares(other):
            given, wanted = ("probabilities", "scores")[:: 1 if _shares(one) else -1]
            raise InputError(
                f"The student gives {given} in '{name}' where its teacher gives {wanted}, and no loss compares the two; let "
                "both end in a softmax, or neither."
            )


def _elsewhere(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether a name that both have stands in another place."""
    return any(name in theirs and list(theirs).index(name) != i for i, name in enumerate(ours))


def _kinds(tensors: Sequence[Tensor]) -> list[tuple]:
    return [(t.shape[1:], t.is_floating_point(), t.dtype == torch.bool) for t in tensors]


def _shares(out: Tensor) -> bool:
    """Whether class scores are probabilities."""
    return normalised(out.reshape(-1, out.shape[-1]))


def _said(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    """Such as "seen (batch, 12) float32, allowed (batch, 8) bool"."""
    found = zip(names, tensors, strict=True)
    return ", ".join(
        f"{n} ({', '.join(['batch', *map(str, t.shape[1:])])}) {str(t.dtype).removeprefix('torch.')}" for n, t in found
    )


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())
