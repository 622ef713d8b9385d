"""The training loop: a student made to answer as its teacher does, or as labels say.

Plain torch. The same seed gives the same student, bit for bit on one CPU with the same number of threads; so does a run
that was killed and goes on from its checkpoint, for what a step does depends on the state and its number only.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.errors import DataError, DataWarning, StorageError
from tersor.loss import Seen
from tersor.maths.rates import warmed
from tersor.measuring.batches import Batch
from tersor.recovery.checkpoint import load, owner, save
from tersor.recovery.course import BEST, History, Training
from tersor.recovery.many import Alone, Group
from tersor.recovery.network import Network, Teacher
from tersor.recovery.optimisers import optimiser_of, usual_rate
from tersor.recovery.replay import Aside, Recorded, Replay, apart, passed
from tersor.recovery.stream import Stream
from tersor.recovery.streams import alike

Progress = Callable[[int, int], None]
Observe = Callable[[int, Mapping[str, nn.Parameter]], None]
"""Hears the number of a step and the parameters, their gradients there, before they move."""
_RETURNS = 10  # to the best state, the rate halved each time


def train(
    student: Network,
    teacher: Teacher,
    stream: Stream,
    how: Training,
    *,
    judge: Callable[[Network], float] | None = None,
    enough: float = -math.inf,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
    group: Group = Alone(),  # noqa: B008 - no state
) -> History:
    """Train `student` in place, for `how.epochs` over the stream.

    judge: how bad the student is, asked before the first step, after each epoch and at the end; the best state comes out
    (the latest of equals), so nothing is lost by training, or, by `how.keep`, the last; it ends where that is at most
    `enough`. Where the loss is no longer finite it goes on from the best state, at half the rate. checkpoint: a file that is
    written every `how.save_every` seconds and from which the same call goes on, in any number of processes; removed by the
    caller. group: the processes that share the batches.
    Raises `DataError` where the loss is no longer finite and nothing was judged, or for the eleventh time; `TimeUp` after the
    step, saved, that ends after the deadline.
    """
    loss = how.loss.placed(partial(alike, student, teacher, stream))
    rate = usual_rate(how.optimiser, loss.steady, how.begun) if how.rate is None else how.rate
    how = replace(how, loss=loss, rate=rate)
    with apart(student.device):
        run = _Run(student, teacher, stream, how, group, max(1, round(how.epochs * stream.steps / how.accumulate)))
        if checkpoint is not None:
            run.resume(checkpoint)
        if judge is not None and not run.history.judged:
            run.judge(judge, enough)
        begin, saved = time.monotonic() - run.history.seconds, time.monotonic()
        for step, batches in () if run.history.stopped else run.batches():
            run.step(step, batches, observe)
            run.history.steps = step + 1
            run.history.seconds = time.monotonic() - begin
            run.keep_time()
            done = step + 1 >= run.last
            if progress is not None:
                progress(step + 1, run.last)
            if judge is not None and (done or (step + 1) % max(1, stream.steps // how.accumulate) == 0):
                run.judge(judge, enough)
            if run.history.stopped or done:
                break
            late = student.shards.first(deadline.left() <= 0)
            if checkpoint is not None and (late or student.shards.first(time.monotonic() - saved > how.save_every)):
                run.keep(checkpoint)
                saved = time.monotonic()
            if late:
                raise deadline.TimeUp
        run.history.seconds = time.monotonic() - begin
        run.finish()
    return run.history


class _Run:
    """One training, as far as it has come."""

    def __init__(self, student: Network, teacher: Teacher, stream: Stream, how: Training, group: Group, last: int):
        self.student, self.teacher, self.stream, self.how, self.group = student, teacher, stream, how, group
        self.last = last
        self.history = History()
        self.learned = self._learned()
        self.parameters = dict(student.parameters)
        if self.learned is not None:
            self.parameters |= {f"loss/{name}": p for name, p in self.learned.named_parameters()}
        assert how.rate is not None  # `train` has chosen one
        multiplying = student.multiplying | {n for n in self.parameters if n.startswith("loss/")}
        self.optimiser = optimiser_of(self.parameters, how.optimiser, how.rate, how.momentum, how.decay, multiplying)
        self.averaged = {n: p.detach().clone() for n, p in student.parameters.items()} if how.average else {}
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.rate = warmed(how.schedule, how.warm_up)
        self._sum: float | Tensor = 0.0
        self._count = 0
        self._every = max(1, last // 200)  # points of the curve
        self._on_cpu = student.device.type == "cpu"  # its numbers can be read at no cost
        self._buffers = list(student.buffers.values())
        recorded = not self._on_cpu and not student.shards.shapes  # messages between processes cannot be
        self.passed = Replay(self._loss) if recorded else partial(passed, self._loss)
        self.update = Recorded(self._update) if recorded else self._update
        self.aside = Aside(student.device)

    def batches(self) -> Iterator[tuple[int, list[tuple[Batch, Tensor]]]]:
        """(step, its batches and which items they are) from where the run stands."""
        n = self.how.accumulate
        waiting: list[tuple[Batch, Tensor]] = []
        end = self.last * n if self.how.limit == math.inf else sys.maxsize  # time may turn out to be left
        for number, batch, items in self.stream.run(self.history.steps * n, end):
            waiting.append((batch, items))
            if (number + 1) % n == 0:
                yield number // n, waiting
                waiting = []

    def step(self, step: int, batches: list[tuple[Batch, Tensor]], observe: Observe | None) -> None:
        total: float | Tensor = 0.0
        for batch, items in batches:
            mine, which, share = self.group.part(batch, items)
            loss = self.passed(mine, which if self.stream.augment is None else None, share / len(batches))
            total += (float(loss) if self._on_cpu else loss.double()) * share / len(batches)
        total = self.group.total(total)
        if self._on_cpu and not math.isfinite(total):
            self._return(step, float(total))
            return
        divided = self.student.shards.shapes  # whose gradients are added up already
        self.group.add([p.grad for n, p in self.parameters.items() if p.grad is not None and n not in divided])
        if observe is not None:
            observe(step, self.student.parameters)
        for part in self.optimiser.param_groups:
            rate = self.highest * self.rate((step + 0.5) / self.last)
            part["lr"] = rate if self._on_cpu else part["lr"].fill_(rate)
        self.update()
        self.group.agree(self._buffers)
        if self.averaged:
            decay = min(self.how.average, (step + 1) / (step + 10))
            now = [self.student.parameters[name].detach() for name in self.averaged]
            torch._foreach_lerp_(list(self.averaged.values()), now, 1 - decay)
        self._sum, self._count = self._sum + total, self._count + 1
        if (step + 1) % self._every == 0 or step + 1 == self.last:
            mean = float(self._sum / self._count)  # to read a number of a GPU is to wait for it
            if math.isfinite(mean):
                self.history.losses.append((step + 1, mean))
                self._sum, self._count = 0.0, 0
            else:
                self._return(step, mean)

    def keep_time(self) -> None:
        """As many steps as fit; looked at where a loss was read, for until then a GPU may be behind."""
        done = self.history.steps
        if self.how.limit < math.inf and done % self._every == 0:
            together = float(self.group.total(self.history.seconds)) / self.group.count  # the same for all processes
            fitting = math.floor(self.how.limit / together * done)
            if not 0.95 <= fitting / self.last <= 1.05:
                self.last = max(done, fitting)

    def _update(self) -> None:
        """Take the step that the gradients say."""
        if self.how.clip:
            self.student.shards.clip(self.parameters, self.how.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=self._on_cpu)

    @property
    def highest(self) -> float:
        """The highest learning rate, as it is by now."""
        assert self.how.rate is not None
        return self.how.rate * 0.5 ** len(self.history.returns)

    def _return(self, step: int, loss: float) -> None:
        """To the best state, to go on from there at half the rate. Raises `DataError`."""
        if self.best is None or len(self.history.returns) == _RETURNS:
            raise DataError(
                f"The loss is {loss} at step {step}; lower the learning rate (it is {self.highest:g}) or clip more, and "
                "look for wrong values in the data."
            )
        self._put(self.best[1])
        for name, average in self.averaged.items():
            average.copy_(self.student.parameters[name].detach())
        for value in (
            value for of in self.optimiser.state.values() for value in of.values() if isinstance(value, Tensor)
        ):
            value.zero_()
        self.optimiser.zero_grad(set_to_none=self._on_cpu)
        self._sum, self._count = 0.0, 0
        self.history.returns.append(step + 1)
        if self.group.rank == 0:
            warnings.warn(
                f"The loss was {loss} at step {step}: the training went back to its best state, at half the learning rate "
                f"({self.highest:g}). A lower --rate from the start saves that time.",
                DataWarning,
                stacklevel=2,
            )

    def judge(self, judge: Callable[[Network], float], enough: float) -> None:
        broken = float(not all(bool(p.detach().isfinite().all()) for p in self.student.parameters.values()))
        if self.group.total(broken):  # by the last steps, whose losses nobody has read
            self._return(self.history.steps - 1, math.nan)
        with self._looking_averaged():
            found = float(self.group.total(judge(self.student))) / self.group.count  # the same for all
            if self.best is None or found <= self.best[0]:
                self.best = (found, self._state())
        self.history.judged.append((self.history.steps, found))
        self.history.stopped = self.best[0] <= enough and self.history.steps < self.last

    def finish(self) -> None:
        """Leave the student in the state that is to come out."""
        best = self.best if self.how.keep == BEST else None
        self.history.last = best is None
        self._put({f"parameter/{n}": t for n, t in self.averaged.items()} if best is None else best[1])

    # ------------------------------------------------------------------------------------------------ its state

    def keep(self, path: Path) -> None:
        """Save it, where the disk lets us: a training is worth more than what it could go on from."""
        try:
            self.save(path)
        except (StorageError, OSError) as cause:
            warnings.warn(
                f"The training cannot save checkpoints: {cause} It goes on, but would start over after a kill.",
                stacklevel=1,
            )

    def save(self, path: Path) -> None:
        tensors = {f"parameter/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"buffer/{n}": t for n, t in self.student.buffers.items()}
        tensors |= {f"average/{n}": t for n, t in self.averaged.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{key}/{name}"] = value
        if self.best is not None:
            tensors |= {f"best/{n}": t for n, t in self.best[1].items()}
        best = None if self.best is None else self.best[0]
        known = {"history": self.history.values(), "best": best, "sum": float(self._sum), "count": self._count}
        known["last"] = self.last
        written: dict[str, Tensor] = {}
        for key, tensor in sorted(tensors.items()):  # all processes in one order, which a file does not keep
            whole = self.student.shards.whole(owner(key), tensor.detach())
            if self.group.rank == 0:
                written[key] = whole.cpu()
        if self.group.rank == 0:
            save(path, written, known)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint that fits; begin anew where there is none."""
        shards = self.student.shards
        found = load(path, {name: shards.shapes.get(name, p.shape) for name, p in self.parameters.items()})
        if found is None:
            return
        tensors, values = {key: shards.part(owner(key), tensor) for key, tensor in found[0].items()}, found[1]
        self._put(tensors)
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "average":
                self.averaged[name].copy_(value)
            elif kind == "optimiser":
                which, _, whose = name.partition("/")
                self.optimiser.state[self.parameters[whose]][which] = value.to(self.student.device, copy=True)
        if values["best"] is not None:
            best = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith("best/")}
            self.best = (float(values["best"]), best)
        self.history = History.of(values["history"])
        self._sum, self._count = float(values["sum"]), int(values["count"])
        self.last = int(values.get("last", self.last))

    def _state(self) -> dict[str, Tensor]:
        found = {f"parameter/{n}": p.detach().clone() for n, p in self.parameters.items()}
        return found | {f"buffer/{n}": t.clone() for n, t in self.student.buffers.items()}

    def _put(self, state: Mapping[str, Tensor]) -> None:
        buffers = self.student.buffers
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "parameter":
                self.parameters[name].data.copy_(value)
            elif kind == "buffer":
                buffers[name].copy_(value)

    def _looking_averaged(self) -> Any:
        return _Exchanged(self.student.parameters, self.averaged) if self.averaged else nullcontext()

    # ------------------------------------------------------------------------------------------------- the loss

    def _loss(self, batch: Batch, items: Tensor | None) -> Tensor:
        ours, theirs = self._nodes()
        device, bf16 = self.student.device, self.how.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=device.type == "cpu"):
            with self.aside.work():
                told = self.teacher(batch.inputs, theirs, items) if self.how.loss.taught else Seen({})
            said = self.student(batch.inputs, ours)
            self.aside.join()
        floats = [replace(seen, outputs={n: _float(t) for n, t in seen.outputs.items()}) for seen in (said, told)]
        labels = pytree.tree_map_only(Tensor, lambda t: t.to(device), batch.labels)
        return self.how.loss(floats[0], floats[1], labels, self.learned)

    def _learned(self) -> nn.Module | None:
        ours, theirs = self._nodes()
        if not ours:
            return None
        batch, _ = self.stream.batch(0)
        with torch.no_grad():
            seen = self.student(batch.inputs, ours, False), self.teacher(batch.inputs, theirs)
            learned = self.how.loss.learned(*seen)
        return None if learned is None else learned.to(self.student.device)

    def _nodes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        pairs = self.how.loss.nodes
        return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


class _Exchanged:
    """Other values for the parameters meanwhile."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]):
        self._parameters, self._values = parameters, values

    def __enter__(self) -> None:
        self._before = {name: self._parameters[name].detach().clone() for name in self._values}
        for name, value in self._values.items():
            self._parameters[name].data.copy_(value)

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            self._parameters[name].data.copy_(value)


def _float(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t
