"""Training that finishes what a fit has begun: the original teaches, what was decided stays decided.

Batch norms that were folded away are put back for it, and folded again: a network trains better with them. What was trained
is kept in the cache, and the state on the way there in a checkpoint beside it: the same command goes on after a kill.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tersor.calibrated import PROFILE_ITEMS, Calibrated
from tersor.forms.affine import Affine
from tersor.forms.codebook import Codebook
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.inputs.job import Job
from tersor.losses import loss_called
from tersor.losses.hard_distillation import HardDistillation
from tersor.maths.bits import as_array
from tersor.measuring.metrics import drop, predictor
from tersor.recovery.course import History, Training
from tersor.recovery.loop import Observe, train
from tersor.recovery.many import group
from tersor.recovery.network import Network, Teacher
from tersor.recovery.replay import local
from tersor.recovery.sharding import LEAST
from tersor.recovery.standard import standard
from tersor.recovery.stream import Stream
from tersor.recovery.wish import AUTO, Recovery
from tersor.rewrites.fold_norms import fold_norms, foldable
from tersor.rewrites.insert_norms import insert_norms, places
from tersor.scratch import scratch
from tersor.site import matrices
from tersor.store import fits
from tersor.target import Compressed
from tersor.weight import Weight

CPU = torch.device("cpu")
_COARSE = 4  # bits
_TRIED = 4  # steps that tell how long one takes
_NORMS = frozenset(
    {
        aten.batch_norm.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.rms_norm.default,
    }
)


class Recovering:
    """Trains compressed models of one job, with the original as the teacher."""

    def __init__(self, job: Job, ground: Calibrated, wish: Recovery, like: Model | None = None, begun: bool = True):
        """like: a network that has its batch norms still, to say where they belong; the original where there is none.
        begun: whether what is trained begins with what the original knows. Raises `InputError` where it has nothing to say."""
        self._job, self._ground, self._wish = job, ground, _chosen(wish, job.model, begun)
        self._like = job.model if like is None else like
        self.history = History()
        self._group, self._divide = group(), LEAST if wish.sharded else None
        self._device = (
            local() if wish.device == "cuda" or (wish.device == "auto" and torch.cuda.is_available()) else CPU
        )

    def __call__(self, compressed: Compressed) -> Compressed:
        """What `compressed` has become; the best of the states after each epoch, on held-out data."""
        key = self._key(compressed, "recovery")

        def trained() -> Compressed:
            student = self._network(compressed)
            self._train(student, self._how(compressed, key), self._ground.cache.checkpoint(key))
            self._ground.cache.put(f"{key}h", {}, self.history.values())
            return student.compressed()

        found = fits.remembered(self._ground.cache, key, lambda: fold_norms(self._ready(compressed).model), trained)
        kept = self._ground.cache.get(f"{key}h")
        self.history = self.history if kept is None else History.of(kept.values)
        return found

    def moved(self, model: Model) -> tuple[Model, dict[str, Tensor]]:
        """The trained `model`, and by matrix name `-sum_t w dL/dw` over the steps, in the shape of its weight.

        Learned from the labels where the loss reads them, else from the teacher's decisions: to copy a teacher that it
        equals would move nothing.
        """
        whole = Compressed(model)
        key = self._key(whole, "movement")
        kept = self._ground.cache.get(key)
        if kept is None:
            student = Network(self._normed(whole), device=self._device, divide=self._divide)
            sums = {m.name: torch.zeros(m.shape, device=self._device) for m in matrices(model)}

            def observe(step: int, parameters: Mapping[str, nn.Parameter]) -> None:
                for m in matrices(model):
                    weight = parameters[student.names[m.weight]]
                    if weight.grad is not None:
                        moved = weight.detach() * weight.grad
                        sums[m.name] -= student.shards.whole(student.names[m.weight], moved)

            how = self._how(whole, key)
            self._train(student, how if how.loss.labelled else replace(how, loss=HardDistillation()), observe=observe)
            values = {f"value/{name}": tensor for name, tensor in student.compressed().model.tensors()}
            self._ground.cache.put(key, values | {f"moved/{name}": total.cpu() for name, total in sums.items()})
        else:
            values, sums = dict(kept.tensors), {m.name: kept.tensors[f"moved/{m.name}"] for m in matrices(model)}
        model = fold_norms(self._normed(whole).model)  # which may have added biases
        for name, _ in list(model.tensors()):
            model.assign(name, values[f"value/{name}"])
        return model, sums

    def _train(
        self, student: Network, how: Training, checkpoint: Path | None = None, observe: Observe | None = None
    ) -> None:
        job, stream = self._job, self._stream()
        with scratch() as folder:  # what the teacher said, for the epochs after the first
            self.history = train(
                student,
                self._teacher(folder, len(job.training)),
                stream,
                how,
                judge=self._judge(),
                enough=-math.inf if observe is not None else self._wish.enough,  # who observes wants to see all of it
                checkpoint=checkpoint,
                progress=lambda done, total: job.progress("training", done, total),
                observe=observe,
                group=self._group,
            )
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def _stream(self) -> Stream:
        job, wish = self._job, self._wish
        size = min(wish.batch, len(job.training))
        return Stream(job.training, size, job.seed, wish.augment, wish.workers, self._device)

    def _key(self, compressed: Compressed, what: str) -> str:
        words = [dict(self._wish.written), sorted(compressed.weights), sorted(map(str, compressed.feeds.items()))]
        return self._ground.key(compressed.model, what, words, self._job.model.digest(), self._job.training.digest())

    def _judge(self) -> Callable[[Network], float]:
        job = self._job

        def judge(student: Network) -> float:
            @torch.no_grad()
            def run(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
                flat = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
                return tuple(as_array(t) for t in student(flat, training=False).outputs.values())

            score = job.metric(predictor(run, job.model.outputs), job.held)
            return drop(job.before_held, score, job.metric).amount

        return judge

    def _network(self, compressed: Compressed) -> Network:
        norms = self._wish.norms
        moving = norms == "moving" or (norms == AUTO and (not self._wish.how.begun or _coarse(compressed.weights)))
        return Network(self._ready(compressed), moving, self._wish.rank, self._job.seed, self._device, self._divide)

    def _teacher(self, folder: Path | None = None, items: int = 0) -> Teacher:
        divide = None if self._device.type == "cpu" else self._divide  # the job has it whole on the CPU
        return Teacher(self._job.model, folder, items, self._device, divide)

    def _ready(self, compressed: Compressed) -> Compressed:
        return compressed if self._wish.rank else self._normed(compressed)

    def _normed(self, compressed: Compressed) -> Compressed:
        names = normed(self._like)
        free = [
            m.name
            for m in matrices(compressed.model)
            if m.name in names
            and (m.weight not in compressed.weights or _scalable(compressed.weights[m.weight], m.rows))
        ]
        if not free:
            return compressed
        bare = Network(compressed, False, device=self._device, divide=self._divide)
        behind = [matrix.node for matrix in places(compressed.model, free)]
        return insert_norms(compressed, bare.moments(behind, self._ground.inputs(PROFILE_ITEMS)))

    def _how(self, compressed: Compressed, key: str) -> Training:
        """How to train. Where seconds were asked for, as many steps as fit; a run that goes on means the same number."""
        how, seconds = self._wish.how, self._wish.seconds
        if seconds is None:
            return how
        kept = self._ground.cache.get(f"{key}length")
        if kept is not None:
            epochs, limit = kept.values
            return replace(how, epochs=float(epochs), limit=float(limit))
        stream, begin, ends = self._stream(), time.monotonic(), []
        tried = _TRIED if self._device.type == "cpu" else 8 * _TRIED  # a device is slow at first
        student, teacher = self._network(compressed), self._teacher()
        trial = replace(how, epochs=tried * how.accumulate / stream.steps)
        train(student, teacher, stream, trial, progress=lambda *_: ends.append(time.monotonic()), group=self._group)
        each = (ends[-1] - ends[tried // 2 - 1]) / (tried - tried // 2)
        limit = max(each, seconds - (ends[-1] - begin))
        all_steps = float(self._group.total(limit / each)) / self._group.count  # the same for all processes
        epochs = max(1, round(all_steps)) * how.accumulate / stream.steps
        self._ground.cache.put(f"{key}length", {}, [epochs, limit])
        return replace(how, epochs=epochs, limit=limit)


def _chosen(wish: Recovery, teacher: Model, begun: bool) -> Recovery:
    """What was wished, with what was left to us."""
    written = dict(wish.written)
    if written.get("loss") == AUTO:
        written["loss"] = standard(teacher, teacher.example)
        wish = replace(wish, how=replace(wish.how, loss=loss_called(written["loss"])))
    return replace(wish, how=replace(wish.how, begun=begun), written=written | {"begun": begun})


def normed(model: Model) -> frozenset[str]:
    """The matrices behind which a batch norm belongs: where the model has one that folds away. A model with convolutions
    and no norm of any kind has lost them all: there it is every convolution but the last matrix.
    """
    found = frozenset(matrix.name for _, matrix in foldable(model))
    if found or any(node.target in _NORMS for node in model.graph.nodes):
        return found
    return frozenset(m.name for m in matrices(model)[:-1] if m.convolution is not None)


def _coarse(weights: Mapping[str, Weight]) -> bool:
    """Whether some are on grids of so few bits that what a norm sees has changed."""
    return any(isinstance(weight, Affine | Codebook) and weight.bits <= _COARSE for weight in weights.values())


def _scalable(weight: Weight, rows: int) -> bool:
    """Whether a value of the weight's set is still one when its rows are scaled, or the set can be scaled with it: a norm could
    be folded into it."""
    if weight.rescaled(torch.ones(rows)) is not None:
        return True
    value = weight.dense()
    scaled = value * torch.linspace(0.7, 1.4, len(value)).reshape(-1, *[1] * (value.ndim - 1))
    return bool(torch.allclose(weight.nearest(scaled).dense(), scaled))
