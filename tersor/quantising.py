"""Put weights, and activations if asked, on grids of few bits, and make what stays free make up for it.

No labels, and no training unless it is asked for. Weights are fitted in execution order, each matrix on what it then reads,
towards what the original gave there. The archive holds packed codes beside the text of its graph; it computes in float,
and says what a machine with such integers would. `compress` is for speed: int8 in the runtimes of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.calibrated import Calibrated
from tersor.errors import InputError
from tersor.fitting import Decisions
from tersor.graph.model import Model
from tersor.inputs.job import Progress, bring, predict_with, quiet, torch_threads
from tersor.maths.grid import Granularity, PerChannel, PerGroup
from tersor.measuring.metrics import Drop, Score, drop
from tersor.records import plain
from tersor.recovering import Recovering, Recovery
from tersor.recovery.loop import History
from tersor.recovery.many import group
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.store_quantised import store_quantised
from tersor.site import matrices
from tersor.store.programs import write_program
from tersor.streaming import QuantizedFolder, quantize_folder, refuse_others
from tersor.techniques.gptq import GPTQ
from tersor.techniques.rounding import Rounding

METHODS: dict[str, type[GPTQ] | type[Rounding]] = {"gptq": GPTQ, "rounding": Rounding}
WORDS = {"ternary": (2, True), "binary": (1, True), "2": (2, False), "1": (1, True)}  # bits, symmetric; else symmetric


@dataclass(frozen=True)
class Quantized:
    """A quantised model, and its score on evaluation data beside the original's.

    model: with its grids in the graph. weights: bits of each matrix. activations: bits of what matrices read, 32 where it
    stays float. bytes: of all parameters, before and after. trained: the course of the training, where there was one.
    """

    name: str
    model: Model
    metric: str
    before: Score
    after: Score
    drop: Drop
    weights: Mapping[str, int]
    activations: int
    bytes: tuple[int, int]
    trained: History | None = None

    @property
    def module(self) -> Any:
        """A module that takes and gives what the original does."""
        return self.model.module

    def to_json(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in vars(self).items() if name != "model"}


def quantize(
    model: Any,
    data: Any,
    *,
    weights: int | str = 4,
    activations: int | str = "none",
    edges: int | str = 8,
    groups: int = 0,
    method: str = "gptq",
    recover: Recovery | str | None = None,
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress = quiet,
) -> Quantized | QuantizedFolder:
    """Quantise a trained model to 1 to 8 bits, from unlabelled data.

    model, data, metric, eval_data: as `compress` takes them. weights: 1 to 8 bits, "ternary" or "binary". activations: 2 to 8
    bits of what matrices read (at 8 bits, of every activation), or "none". edges: bits of the first and last matrix.
    groups: columns that share a scale, 0 for one scale an output. method: "gptq", or "rounding" to nearest. recover: how to
    train afterwards ("2epochs", "10m", or a `Recovery`), with the original as the teacher and the steps of the grids learned.
    out: a `torch.export` archive (.pt2) with packed codes, which torch loads without Tersor.
    Where `model` is a folder of a language model (config.json, safetensors): see `quantize_folder`, which does that.
    Raises `InputError` for wishes that cannot be meant, and what `compress` raises for its inputs.
    """
    if isinstance(model, str | Path) and Path(model).is_dir():
        refuse_others(activations=activations, edges=edges, recover=recover, metric=metric)
        return quantize_folder(
            Path(model),
            data,
            weights=weights,
            groups=groups,
            method=method,
            eval_data=eval_data,
            threads=threads,
            seed=seed,
            exclude=exclude,
            out=out,
            progress=progress,
        )
    how = recover if isinstance(recover, Recovery) else Recovery.of(recover)
    wanted, ends, read = _technique(weights, method, groups), _technique(edges, method, groups), _read(activations)
    with torch_threads(threads):
        job = bring(model, data, metric, 0.0, eval_data, 1, threads, seed, tuple(exclude), None, progress)
        ground = Calibrated(job, fold_norms(job.model))
        names = [m.name for m in matrices(ground.model)]
        chosen = {n: ends if n in (names[0], names[-1]) else wanted for n in names if n not in job.exclude}
        if not chosen:
            raise InputError(
                "The model has no matrix that may be quantised; `tersor inspect` lists them. Exclude fewer."
            )
        decisions = Decisions(techniques=chosen, feeds="none" if read == 32 else "static", bits=min(8, read))
        fitted = ground.fit(decisions, items=len(job.calibration))
        recovering = None if how is None else Recovering(job, ground, how)
        if recovering is not None:
            fitted = recovering(fitted)
        stored = store_quantised(fitted)
        job.progress("judging", 0, 0)
        after = job.metric(predict_with(stored), job.evaluation)
    if out is not None and group().rank == 0:
        write_program(Path(out), stored)
    return Quantized(
        name=job.name,
        model=stored,
        metric=job.metric.name,
        before=job.before,
        after=after,
        drop=drop(job.before, after, job.metric),
        weights={name: technique.bits for name, technique in chosen.items()},
        activations=read,
        bytes=(_bytes(job.model), _bytes(stored)),
        trained=None if recovering is None else recovering.history,
    )


def _technique(bits: int | str, method: str, groups: int) -> GPTQ | Rounding:
    word = str(bits).strip()
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}; choose of {', '.join(METHODS)}.")
    if word not in WORDS and not (word.isdecimal() and 1 <= int(word) <= 8):
        raise InputError(f"Weights of {word!r} bits were asked for; write 1 to 8, ternary or binary.")
    if groups < 0:
        raise InputError(f"groups is {groups}; write how many columns share a scale, or 0 for one scale an output.")
    number, symmetric = WORDS.get(word) or (int(word), True)
    grain: Granularity = PerGroup(groups) if groups else PerChannel()
    return METHODS[method](number, symmetric, grain)


def _read(bits: int | str) -> int:
    word = str(bits).strip()
    if word == "none":
        return 32
    if not (word.isdecimal() and 2 <= int(word) <= 8):
        raise InputError(f"Activations of {word!r} bits were asked for; write 2 to 8, or none.")
    return int(word)


def _bytes(model: Model) -> int:
    return sum(t.numel() * t.element_size() for t in model.module.state_dict().values())
