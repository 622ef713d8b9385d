"""Put weights, and activations if asked, on grids of few bits, and make what stays free make up for it.

No labels, and no training unless it is asked for. Weights are fitted in execution order, each matrix on what it then reads,
towards what the original gave there. The archive holds packed codes beside the text of its graph; it computes in float,
and says what a machine with such integers would. `compress` is for speed: int8 in the runtimes of this machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.calibrated import Calibrated
from tersor.deadline import Deadline, TimeUp
from tersor.errors import InputError, LimitWarning
from tersor.feeds import RANGES
from tersor.fitting import Decisions
from tersor.graph.model import Model
from tersor.inputs import amounts
from tersor.inputs.encoder import holds_encoder
from tersor.inputs.job import Progress, bring, calibrating_on_all, predict_with, quiet, torch_threads, watched
from tersor.left_alone import EXCLUDED, LeftAlone, layers_of, left_alone
from tersor.limits import Heard, limited, stopped_early
from tersor.maths.grid import PerChannel, PerGroup
from tersor.maths.levels import FORMATS
from tersor.measuring.metrics import Drop, Score, drop
from tersor.records import plain
from tersor.recovering import Recovering
from tersor.recovery.course import History
from tersor.recovery.many import group
from tersor.recovery.wish import Recovery
from tersor.report import Interval, Watched
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.store_quantised import store_quantised
from tersor.site import cells, matrices, tables
from tersor.store.files import refuse_file
from tersor.store.programs import ENDINGS, refuse_foreign, write_model
from tersor.streaming import METHODS, QuantizedFolder, quantize_folder, refuse_others
from tersor.target import Compressed
from tersor.techniques.cast import DTYPES, Cast
from tersor.techniques.floats import Floats
from tersor.techniques.gptq import GPTQ
from tersor.techniques.kmeans import KMeans
from tersor.techniques.rounding import Rounding
from tersor.trials import beside_float, one_batch

Stored = GPTQ | Rounding | Floats | KMeans | Cast
WORDS = {"ternary": (2, True), "binary": (1, True), "2": (2, False), "1": (1, True)}  # bits, symmetric; else symmetric


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and its score on evaluation data next to the original's.

    model: with its grids in the graph. weights: bits of each matrix. activations: bits of what matrices read, 32 where it
    stays float. bytes: of all parameters, before and after. trained: the course of the training, where there was one.
    left_alone: layers and parameters that stay float, and why.
    outputs: what became of those that the metric does not look at. ratio: time of a written ONNX file over that of the same
    model in float, one item in ONNX Runtime, with its verdict.
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
    outputs: tuple[Watched, ...] = ()
    ratio: Interval | None = None
    verdict: str = ""
    left_alone: tuple[LeftAlone, ...] = ()

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
    kv_cache: int | str = "none",
    edges: int | str = "auto",
    embeddings: int | str = "none",
    groups: int = 0,
    method: str = "gptq",
    ranges: str = "best",
    polish: int = 0,
    recover: Recovery | str | None = None,
    metric: Any = "accuracy",
    eval_data: Any = None,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    time_limit: float | str | Deadline | None = None,
    memory_limit: int | str | None = None,
    progress: Progress = quiet,
) -> Quantized | QuantizedFolder:
    """Quantize a trained model to 1 to 16 bits, from unlabeled data.

    model, data, metric, eval_data: as for `compress`. weights: integers of 1 to 8 bits, "ternary", "binary", a format of
    `maths.levels.FORMATS` ("nf4", "fp8", "mxfp4", "log4", ...), "codebook16" (16 learned values), "bf16" or "fp16".
    activations: 2 to 8 bits for the inputs of layers (at 8 bits also for what integer kernels pass on), or "none".
    edges: weight format of the first and the last layer; "auto": 8 bits where the others have fewer. embeddings: weight format
    of embeddings, or "none" to keep them in float. groups: group size, columns that share a scale; 0 for the format's default
    (one scale per output channel, for most). method: "gptq", or "rounding" to nearest. ranges: the observer of activation
    ranges, one of `feeds.RANGES`. recover: quantization-aware training ("2epochs", "10m", or a `Recovery`), with the original
    as the teacher and learned scales. time_limit: maximum time ("10m"), of which only the last evaluation is not a part; where
    a training does not end within it, the result is what was quantized without it.
    out: a `torch.export` archive (.pt2) with packed integers, which torch loads without Tersor; or an ONNX file (.onnx), where
    linear layers have packed integers of 4 or 8 bits and everything else is float.
    If `model` is the folder of a language model (config.json, safetensors), see `quantize_folder`; kv_cache and polish apply
    only there.
    Raises `InputError` for arguments that contradict each other, and what `compress` raises for its inputs.
    """
    limit, heard = amounts.deadline(time_limit), Heard(progress)
    if isinstance(model, str | Path) and Path(model).is_dir() and not holds_encoder(model):
        if memory_limit is not None:
            raise InputError(
                "memory_limit does not apply to the folder of a language model, which is quantized one block at a time; "
                "leave it out."
            )
        refuse_others(edges=edges, embeddings=embeddings, ranges=ranges, recover=recover, metric=metric)
        with limited(limit, heard):
            return quantize_folder(
                Path(model),
                data,
                weights=weights,
                activations=activations,
                kv_cache=kv_cache,
                groups=groups,
                method=method,
                polish=polish,
                eval_data=eval_data,
                threads=threads,
                seed=seed,
                exclude=exclude,
                out=out,
                progress=heard,
            )
    if str(kv_cache).strip() != "none":
        raise InputError(f"kv_cache is {kv_cache!r}; it applies only to folders of language models. Leave it out.")
    if polish:
        raise InputError(f"polish is {polish}; it applies only to folders of language models. Use recover instead.")
    if out is not None:
        refuse_file(Path(out), ENDINGS)
        refuse_foreign(Path(out))
    how = recover if isinstance(recover, Recovery) else Recovery.of(recover)
    if str(embeddings).strip() != "none":
        _technique(embeddings, "rounding", groups)  # words are judged before anything is loaded
    if ranges not in RANGES:
        raise InputError(f"There are no ranges {ranges!r}; choose one of {', '.join(RANGES)}.")
    (wanted, ends), read = _techniques(weights, edges, method, groups), _read(activations)
    if out is not None and Path(out).suffix == ".onnx":
        _refuse_onnx(weights, wanted, read)
    with torch_threads(threads):
        with limited(limit, heard, group().count == 1):
            job = bring(
                model, data, metric, 0.0, eval_data, 1, threads, seed, tuple(exclude), limit, heard, memory_limit
            )
            job = calibrating_on_all(job) if how is None else job
            ground = Calibrated(job, fold_norms(job.model))
            names = [m.name for m in matrices(ground.model)]
            chosen = {n: ends if n in (names[0], names[-1]) else wanted for n in names if n not in job.exclude}
            chosen |= {c.name: wanted for c in cells(ground.model) if c.name not in job.exclude}
            if str(embeddings).strip() != "none":
                looked_up = _technique(embeddings, "rounding", groups)
                chosen |= {t.name: looked_up for t in tables(ground.model) if t.name not in job.exclude}
            if not chosen:
                raise InputError(
                    "The model has no layer that can be quantized; `tersor inspect` lists its layers. Exclude fewer."
                )
            decisions = Decisions(
                techniques=chosen, feeds="none" if read == 32 else "static", bits=min(8, read), ranges=ranges
            )
            fitted = ground.fit(decisions, items=len(job.calibration))
            recovering = None if how is None else Recovering(job, ground, how)
            if recovering is not None:
                try:
                    fitted = recovering(fitted)
                except TimeUp:
                    kept = "what was quantized, without the training"
                    warnings.warn(stopped_early(limit, heard, kept), LimitWarning, stacklevel=2)
                    recovering = None
        stored = store_quantised(fitted)
        job.progress("evaluating", 0, 0)
        after = job.metric(predict_with(stored), job.evaluation)
    if out is not None and group().rank == 0:
        write_model(Path(out), fitted, stored)
    race = None
    if out is not None and Path(out).suffix == ".onnx" and group().rank == 0:
        job.progress("timing the file against the float model", 0, 0)
        race = beside_float(Path(out), job.model, one_batch(job.calibration, 1), job.threads)
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
        outputs=watched(job, predict_with(stored)),
        ratio=None if race is None else race.ratio("file", "float"),
        verdict="" if race is None else race.verdict("file", "float"),
        left_alone=left_alone(ground.model, _spared(ground.model, fitted, job.exclude)),
    )


def _spared(model: Model, fitted: Compressed, exclude: Sequence[str]) -> dict[str, str]:
    """The layers whose weights stay float, and why."""
    looked_up = {table.name for table in tables(model)}
    reasons = {}
    for layer in layers_of(model):
        if layer.weight not in fitted.weights:
            embedding = "an embedding, for which no format was given" if layer.name in looked_up else "not quantized"
            reasons[layer.name] = EXCLUDED if layer.name in exclude else embedding
    return reasons


def _techniques(weights: int | str, edges: int | str, method: str, groups: int) -> tuple[Stored, Stored]:
    """Of most matrices, and of the first and last one."""
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.")
    if groups < 0:
        raise InputError(f"groups is {groups}; write how many columns share a scale, or 0 for the format's default.")
    inner = _technique(weights, method, groups)
    if str(edges).strip() == "auto":
        return inner, inner if inner.bits >= 8 else _technique(8, method, groups)
    return inner, _technique(edges, method, groups)


def _technique(wanted: int | str, method: str, groups: int) -> Stored:
    word = str(wanted).strip()
    grain = PerGroup(groups) if groups else None
    values = word.removeprefix("codebook")
    if word in WORDS or (word.isdecimal() and 1 <= int(word) <= 8):
        number, symmetric = WORDS.get(word) or (int(word), True)
        return METHODS[method](number, symmetric, grain or PerChannel())
    if word in FORMATS:
        return Floats(word, grain)
    if grain is None and word in DTYPES:
        return Cast(word)
    if grain is None and word != values and values.isdecimal():
        return KMeans(int(values))
    if word in DTYPES or word != values:
        raise InputError(f"The weight format {word} has no group size; leave out groups, or choose another format.")
    known = ", ".join([*FORMATS, *DTYPES])
    raise InputError(f"There is no weight format {word!r}; write 1 to 8, ternary, binary, codebook16 or {known}.")


def _refuse_onnx(weights: int | str, wanted: Stored, read: int) -> None:
    if not isinstance(wanted, GPTQ | Rounding):
        raise InputError(
            f"An ONNX file cannot hold weights in {weights!r}; choose 2 to 8 bits, or write a .pt2 archive."
        )
    if read < 32:
        raise InputError(
            f"quantize writes no ONNX file with activations of {read} bits; use `tersor compress` for that, leave activations "
            "at none, or write a .pt2 archive."
        )


def _read(bits: int | str) -> int:
    word = str(bits).strip()
    if word == "none":
        return 32
    if not (word.isdecimal() and 2 <= int(word) <= 8):
        raise InputError(f"activations is {word!r}; write 2 to 8 (bits), or none.")
    return int(word)


def _bytes(model: Model) -> int:
    return sum(t.numel() * t.element_size() for t in model.module.state_dict().values())
