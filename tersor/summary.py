"""The report of a search: what was claimed is put beside what was predicted, layer by layer and item by item."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

import numpy as np
import torch

from tersor.deadline import TimeUp, until
from tersor.errors import reason
from tersor.graph.likelihood import divergence
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.graph.watched import watched as real_places
from tersor.inputs.job import Job, watched
from tersor.left_alone import EXCLUDED, layers_of, left_alone
from tersor.measuring.certainty import cautions, flips
from tersor.measuring.clock import Race
from tersor.measuring.machine import folder_bytes, machine, versions
from tersor.measuring.metrics import Score, drop
from tersor.measuring.regression import compare
from tersor.profile import TEMPERATURE
from tersor.recovery.course import History
from tersor.report import (
    Compared,
    Course,
    Executed,
    Figures,
    Layer,
    Regression,
    Report,
    Share,
    Spot,
    Tried,
    Watched,
    faster,
)
from tersor.search import BASELINE, ORIGINAL, Search
from tersor.site import Matrix, matrices, sites, tables
from tersor.target import Compressed, Dynamic, Runner
from tersor.targets import target_name
from tersor.trials import Trial, answers
from tersor.units import several

SIMULATED = 32  # items on which the runtime is compared with its simulation
Made = TypeVar("Made")

OWN_DATA = (
    "The metric was evaluated on a part of DATA that nothing else used. If the model was trained on DATA, it may lose more on "
    "new data; --eval-data evaluates on data of your own choice."
)


def summarise(job: Job, search: Search, chosen: Trial, race: Race, seconds: float) -> Report:
    """Everything that is claimed of `chosen`; `seconds` is what the whole run took."""
    assert chosen.score is not None
    runner = chosen.candidate.target.load(chosen.folder, job.threads)
    after = answers(chosen, runner, job.batch)
    lost = drop(job.before, chosen.score, job.metric)
    eager, small = search.bench.trials.get(ORIGINAL), chosen.candidate.compressed.model
    original, timed = job.original, ORIGINAL in race.samples
    same = _unchanged(search, chosen, race)
    faithful: tuple[str, ...] = _in_time(
        search, "the comparison with a simulation of the file", lambda: _faithful(job, chosen), ()
    )
    outputs: tuple[Watched, ...] = _in_time(
        search, "the outputs that the metric does not look at", lambda: watched(job, after), ()
    )
    regression: Regression | None = _in_time(
        search, "the comparison item by item", lambda: compare(original, after, job.evaluation, seed=job.seed), None
    )
    return Report(
        model=job.name,
        metric=job.metric.name,
        lower=job.metric.lower,
        before=_figures(ORIGINAL, job.before, job.model, eager, race),
        after=_figures(chosen.name, chosen.score, small, chosen, race),
        drop=lost.text,
        budget=f"at most {100 * job.max_drop:.4g} {'%' if lost.relative else 'points'} of {job.metric.name}",
        limit=job.max_drop,
        batch=job.batch,
        threads=job.threads,
        ratio=race.ratio(chosen.name, ORIGINAL) if timed else None,
        noise=race.noise(),
        verdict=race.verdict(chosen.name, ORIGINAL) if timed else "",
        unchanged=None if same is None else _figures(same, job.before, job.model, search.bench.trials[same], race),
        runtime=race.ratio(same, ORIGINAL) if same is not None and timed else None,
        runtime_verdict=race.verdict(same, ORIGINAL) if same is not None and timed else "",
        compression=None if same is None else race.ratio(chosen.name, same),
        compression_verdict="" if same is None else race.verdict(chosen.name, same),
        rounds=race.rounds,
        target=repr(chosen.candidate.target),
        tried=tuple(_tried(search, trial, race) for trial in search.bench.trials.values() if trial.name != ORIGINAL),
        layers=_layers(search, chosen),
        work=_work(job.model, small),
        regression=regression,
        left_alone=left_alone(search.model, _spared(search, chosen)),
        outputs=outputs,
        training=tuple(_course(plan, history) for plan, history in search.courses.items()),
        audit=tuple(Executed(**asdict(o)) for o in chosen.audit.operators) if chosen.audit else (),
        compared=_in_time(
            search, "the comparison of predicted and measured figures", lambda: _compared(search, chosen, runner), ()
        ),
        machine=machine(),
        versions=versions(),
        warnings=(
            *_slower(search, chosen, race),
            *tuple(cautions(job.metric, job.before, job.evaluation, job.max_drop)),
        ),
        seeds={"seed": job.seed},
        data={
            "calibration": job.calibration.digest(),
            "held": job.held.digest(),
            "evaluation": job.evaluation.digest(),
        },
        load=race.load,
        cost={"seconds": seconds, "bytes": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss},
        notes=(
            *(said for output in outputs if (said := output.words(job.metric.name))),
            *flips(regression),
            *faithful,
            *search.notes,
            *([] if timed else [_untimed(eager)]),
            *(() if job.apart else (OWN_DATA,)),
        ),
    )


def _in_time(search: Search, what: str, make: Callable[[], Made], otherwise: Made) -> Made:
    """What `make` gives, where the time allows it and nothing fails; else it is said that it is missing."""
    try:
        with until(search.job.deadline.sooner(search.bench.copying)):
            return make()
    except TimeUp:
        search.notes.append(f"The report lacks {what}: the time limit left no time for it.")
    except Exception as cause:  # it is told beside the result, and is no part of it
        search.notes.append(f"The report lacks {what}: {reason(cause)}")
    return otherwise


def _untimed(original: Trial | None) -> str:
    if original is None or original.refused is None:
        return "The time limit left no time to time the original."
    return f"The original could not be timed. {original.refused}"


def _course(plan: str, history: History) -> Course:
    losses, judged = (tuple(Spot(*pair) for pair in pairs) for pairs in (history.losses, history.judged))
    return Course(plan, history.steps, history.seconds, losses, judged)


def _figures(name: str, score: Score, model: Model, trial: Trial | None, race: Race) -> Figures:
    return Figures(
        name=name,
        score=score if isinstance(score, dict) else {"": score},
        seconds=race.seconds(name) if name in race.samples else None,
        nbytes=_stored(model) if trial is None or trial.refused is not None else folder_bytes(trial.folder),
        macs=sum(macs(model).values()),
        parameters=sum(p.numel() for p in model.module.parameters()),
        memory=race.memory.get(name),
    )


def _stored(model: Model) -> int:
    """Bytes of the parameters, where there is no file of them."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def _unchanged(search: Search, chosen: Trial, race: Race) -> str | None:
    """The unchanged model in the runtime of the chosen file; None where that is the chosen one, the original, or not timed."""
    name = search.unchanged(target_name(chosen.candidate.target)[0], late=True)
    return name if name not in (None, chosen.name, ORIGINAL) and name in race.samples else None


def _slower(search: Search, chosen: Trial, race: Race) -> tuple[str, ...]:
    """Where ONNX Runtime runs the unchanged model faster than the chosen file runs."""
    if BASELINE[0] not in {target_name(t)[0] for t in search.targets}:
        return ()
    name = search.unchanged(BASELINE[0], late=True)
    if name is None or name == chosen.name or name not in race.samples or race.verdict(chosen.name, name) != "slower":
        return ()
    how = faster(race.ratio(chosen.name, name), "slower")
    return (
        f"This file is slower than the unchanged model in ONNX Runtime fp32: {how}. It is the best that the requested "
        "targets and the budget allow; if speed matters most, add onnxruntime:fp32 to --target.",
    )


def _tried(search: Search, trial: Trial, race: Race) -> Tried:
    """A candidate, its time as in the last race; of one that was not in that, put right by those that were."""
    bench = search.bench
    if trial.refused is not None:
        return Tried(trial.name, note=trial.refused)
    score: Mapping[str, float] = {}
    amount, note = None, "not evaluated: slower than the fastest candidate within the budget"
    if trial.candidate.reference:
        note = "the unchanged model, for comparison only"
    elif trial.score is not None:
        score = trial.score if isinstance(trial.score, dict) else {"": trial.score}
        lost = bench.judge(trial.name)
        amount, note = None if lost is None else lost.amount, ""
    elif not bench.looked_good(trial.name):
        note = "not evaluated: over budget on held-out data"
    both = [race.median(n) / s for n in race.samples if (s := _seconds(bench.trials, n)) is not None]
    drift = float(np.median(both)) if both else 1.0
    seconds = trial.seconds if trial.seconds is None else trial.seconds * drift
    seconds = race.median(trial.name) if trial.name in race.samples else seconds
    return Tried(trial.name, seconds, score, amount, trial.nbytes, note)


def _seconds(trials: Mapping[str, Trial], name: str) -> float | None:
    return trials[name].seconds if name in trials else None


def _layers(search: Search, chosen: Trial) -> tuple[Layer, ...]:
    compressed, decided = chosen.candidate.compressed, search.decided[chosen.name]
    techniques = decided.techniques if decided is not None else {}
    after = {matrix.name: matrix for matrix in (*matrices(compressed.model), *tables(compressed.model))}
    looked_up = [table for table in tables(search.model) if table.name in techniques]
    return tuple(
        _layer(search, matrix, after.get(matrix.name), compressed, repr(techniques.get(matrix.name, "unchanged")))
        for matrix in (*looked_up, *matrices(search.model))
    )


def _spared(search: Search, chosen: Trial) -> dict[str, str]:
    """The layers that are as they were in the chosen version, and why."""
    compressed, exclude = chosen.candidate.compressed, search.job.exclude
    after = {layer.name: layer for layer in layers_of(compressed.model)}
    reasons = {}
    for layer in layers_of(search.model):
        now = after.get(layer.name)
        if now is not None and now.shape == layer.shape and layer.weight not in compressed.weights:
            reasons[layer.name] = EXCLUDED if layer.name in exclude else "unchanged in the chosen candidate"
    return reasons


def _layer(search: Search, before: Matrix, after: Matrix | None, compressed: Compressed, technique: str) -> Layer:
    weight = compressed.weights.get(before.weight)
    size = compressed.model.tensor(before.weight).numel() if after is not None else 0
    nbytes = weight.nbytes if weight is not None else 4 * size
    feed = compressed.feeds.get(_read_by(compressed.model, after)) if after is not None else None
    fed = ", dynamic activations" if weight is not None and isinstance(feed, Dynamic) else ""
    return Layer(
        name=before.name,
        shape=before.shape,
        technique=technique.strip("'") + fed,
        bits=round(8 * nbytes / size, 2) if size else 0.0,
        width_before=before.rows,
        width_after=after.rows if after is not None else 0,
        damage=search.damage.get((before.name, technique)),
        nbytes_before=4 * search.model.tensor(before.weight).numel(),
        nbytes_after=nbytes,
    )


def _read_by(model: Model, matrix: Matrix) -> str:
    """The graph node whose value `matrix` reads; of an embedding its own, which reads indices."""
    found = (site.activation for site in sites(model) if any(m.node == matrix.node for m in site.matrices))
    return next(found, matrix.node)


def _work(before: Model, after: Model) -> tuple[Share, ...]:
    """Multiply-accumulates, as shares of those of the original."""
    was, now = macs(before), macs(after)
    whole = max(1, sum(was.values()))
    return tuple(Share(name, cost / whole, now.get(name, 0) / whole) for name, cost in was.items())


def _compared(search: Search, chosen: Trial, runner: Runner) -> tuple[Compared, ...]:
    found, plan, damage = [], chosen.candidate.plan, search.predicted(chosen)
    if plan is not None:
        found.append(Compared("time per batch", plan.seconds, chosen.seconds, "seconds"))
        found.append(Compared("file size", plan.nbytes, float(chosen.nbytes), "bytes"))
    if damage is not None and real_places(search.job.model).places is None:  # else no output shows what was predicted
        found.append(Compared("loss increase per item", damage, _divergence(search.job, runner), "nats"))
    return tuple(found)


def _faithful(job: Job, chosen: Trial) -> tuple[str, ...]:
    """Whether the runtime computes what our simulation of its file says, and the first activation where it does not."""
    try:
        found = chosen.candidate.target.fidelity(chosen.folder, next(iter(job.held.rebatch(SIMULATED))).arrays())
    except Exception as unknown:  # a check, whatever it meets in a runtime or in the simulation
        return (f"The runtime could not be compared with a simulation of its file. {reason(unknown)}",)
    if found is None:
        return ()
    items = several(found.items, "item")
    same = f"The runtime agrees with a simulation of its file on {100 * found.agreement:.4g} % of {items}"
    if found.parts is None:
        return (f"{same}, and all quantized activations are equal.",)
    d = found.parts
    return (
        f"{same}; the first activation that differs is {d.node}: {d.differing} of {d.total} values, by at most {d.steps:.3g} "
        "quantization steps.",
    )


def _divergence(job: Job, runner: Runner) -> float:
    """Of the exported file's outputs from the original's, nats an item of the held-out part, as damage is predicted."""
    total = 0.0
    for batch in job.held:
        theirs = [torch.from_numpy(np.array(out)) for out in runner.predict(*batch.arrays())]
        total += divergence(job.model.run(*batch.inputs), theirs, batch.inputs, TEMPERATURE)
    return total / len(job.held)
