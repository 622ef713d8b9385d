"""Teach one model what another knows: the student's own shape, the teacher's answers.

The student is any module that takes and gives what the teacher does: a narrower or shallower network, one that `prune` made,
one that was never trained. Labels are used where the loss names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.calibrated import Calibrated
from tersor.errors import InputError
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.inputs import models
from tersor.inputs.job import Progress, bring, predict_with, quiet, torch_threads
from tersor.measuring.metrics import Drop, Score, drop
from tersor.records import plain
from tersor.recovering import Recovering, Recovery
from tersor.recovery.loop import History
from tersor.recovery.many import group
from tersor.rewrites.fold_norms import fold_norms
from tersor.store.programs import write_program
from tersor.target import Compressed


@dataclass(frozen=True)
class Distilled:
    """A trained student, and its scores on evaluation data beside the teacher's.

    untrained: the student's score as it came; drop: from the teacher to the trained student. macs: of teacher and student.
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
    recover: Recovery | str = "2epochs",
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = quiet,
) -> Distilled:
    """Train `student` to answer as `teacher` does.

    student, teacher, data, metric, eval_data: as `compress` takes them; both models have the same inputs and outputs. recover:
    how long and how ("2epochs", "10m", or a `Recovery`). The best state after an epoch, on held-out data, comes out. out: a
    `torch.export` archive (.pt2), which torch loads without Tersor and `compress` takes.
    Raises `InputError` where the two do not fit together, and what `compress` raises for its inputs.
    """
    how = recover if isinstance(recover, Recovery) else Recovery.of(recover)
    if how is None:
        raise InputError("recover is none, and a student learns nothing in no time; give 2epochs, 10m, or a Recovery.")
    with torch_threads(threads):
        job = bring(teacher, data, metric, 0.0, eval_data, 1, threads, seed, (), None, progress)
        brought = models.bring(student)
        captured = models.captured(brought, job.model.arguments(job.model.example))
        _refuse_strangers(captured, job.model)
        small = fold_norms(captured)
        untrained = job.metric(predict_with(small), job.evaluation)
        recovering = Recovering(job, Calibrated(job, small), how, like=captured)
        trained = recovering(Compressed(small)).model
        after = job.metric(predict_with(trained), job.evaluation)
    if out is not None and group().rank == 0:
        write_program(Path(out), trained)
    return Distilled(
        name=brought.name,
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
    )


def _refuse_strangers(student: Model, teacher: Model) -> None:
    ours, theirs = ([tuple(t.shape) for t in model.run(*teacher.example)] for model in (student, teacher))
    if ours != theirs:
        raise InputError(
            f"The student gives {_shapes(ours)} where the teacher gives {_shapes(theirs)}; a student must have its teacher's "
            "outputs."
        )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str(shape) for shape in shapes)


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())
