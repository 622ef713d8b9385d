"""Candidates, tried for real: exported, scored in their own runtime, timed side by side.

A *candidate* is a fitted model and a target. A *trial* is what became of it. The *workbench* holds the trials of one run;
every number that is claimed comes from there. Nothing here decides; `search` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np

from tersor import deadline
from tersor.errors import KILLED, StorageError, TargetError, reason
from tersor.graph.model import Model
from tersor.inputs.job import Job
from tersor.measuring.batches import Batches
from tersor.measuring.clock import Contender, Race, race
from tersor.measuring.metrics import Drop, Metric, Predict, Score, drop, predictor
from tersor.memory import CONTAINER, LARGE, Room, trim
from tersor.plan import Plan
from tersor.scratch import full_disk, room, scratch
from tersor.target import Audit, Compressed, Dynamic, Runner, Target
from tersor.targets import target_called, target_name
from tersor.units import several

CLOSING = 2.0  # seconds that a report and a manifest take
BESIDE = 20  # rounds of a file against its float model
COPIED = 50e6  # bytes a second, flushed


@dataclass(frozen=True)
class Candidate:
    """A fitted model, where it should run, and the plan that led to it (None: nothing lossy was done).

    A reference is timed beside the others and never chosen.
    """

    name: str
    target: Target
    compressed: Compressed
    plan: Plan | None = None
    reference: bool = False


@dataclass(frozen=True)
class Trial:
    """What became of a candidate. `refused` says why it could not be exported, run or judged; then nothing else counts. full:
    there was no room for its file."""

    candidate: Candidate
    folder: Path
    nbytes: int = 0
    seconds: float | None = None
    score: Score | None = None
    audit: Audit | None = None
    refused: str | None = None
    full: bool = False

    @property
    def name(self) -> str:
        return self.candidate.name


class Workbench:
    """The trials of a job, by name, in a scratch folder that the caller removes.

    Scores are computed when they are first asked for, so that the evaluation data is read for as few artifacts as
    possible.
    """

    def __init__(self, job: Job, scratch: Path):
        self.job = job
        self.scratch = scratch
        self.trials: dict[str, Trial] = {}
        self._held: dict[str, Drop] = {}
        self._judging = job.scoring
        self._races: list[float] = []
        self._raced: list[Race] = []
        self._probes = 0
        self._started: float | None = None  # the race under way
        self._blamed: dict[type[Target], str] = {}
        self._batch = one_batch(job.calibration, job.batch)
        self._rehearsed: list[
            Path
        ] = []  # batches that files are judged on, which each predicts once before this process

    def export(self, candidates: Iterable[Candidate]) -> list[Trial]:
        """Try the candidates out; gives those that their target accepted."""
        fresh = []
        for candidate in candidates:
            deadline.check()
            self.job.progress(f"exporting {candidate.name}", 0, 0)
            with deadline.enforced():
                trial = try_out(candidate, self.scratch / f"{len(self.trials):03d}")
            self.trials[trial.name] = trial
            fresh += [trial] if trial.refused is None else []
        return fresh

    def time(
        self, names: Sequence[str], rounds: int, behind: float | None = None, starts: int = 1, rehearse: bool = True
    ) -> Race:
        """Time trials on one batch, taking turns, each in a process of its own; the first also against itself.

        Who fails is ruled out, and the others go on; raises `TargetError` where all do. Who takes more than `behind` times as
        long as the fastest is soon out. starts: as for `race`. rehearse: whether a file that was never timed first predicts, in
        a process that may crash, batches as it is judged on. Only ratios of one race can be compared: what was timed before
        is the measure of what is new.
        """
        names = [n for n in names if self.trials[n].refused is None]
        if not names:
            raise TargetError("None of the candidates to be timed can be run.")
        self.job.progress(f"timing {several(len(names), 'candidate')}", 0, 0)
        self._started = monotonic()
        failures: dict[str, str] = {}
        try:
            race = time_side_by_side(
                [self.trials[n] for n in names],
                self._batch,
                threads=self.job.threads,
                rounds=rounds,
                scratch=self.scratch,
                behind=behind,
                starts=starts,
                failures=failures,
                room=self.job.room,
                rehearsed=self._rehearsal() if rehearse else (),
            )
            self._races.append((monotonic() - self._started) / starts)
            self._raced.append(race)
        finally:
            self._started = None
            for name, why in failures.items():
                self.rule_out(name, f"{why}{self._blame(self.trials[name], why)}")
        timed = [n for n in names if n in race.samples]
        known = [n for n in timed if self.trials[n].seconds is not None]
        drift = float(np.median([race.median(n) / (self.trials[n].seconds or 1.0) for n in known])) if known else 1.0
        for name in timed:
            if name not in known:
                self.trials[name] = replace(self.trials[name], seconds=race.median(name) / drift)
        return race

    def ratio(self, candidate: Candidate, name: str, rounds: int) -> float | None:
        """Seconds of a candidate that is only a probe, over those of trial `name`; None where it cannot be exported or run."""
        self._probes += 1
        with deadline.enforced():
            probe = try_out(candidate, self.scratch / f"probe{self._probes:03d}")
        if probe.refused is not None:
            return None
        pair = [self.trials[name], probe]
        threads, scratch = self.job.threads, self.scratch
        try:
            race = time_side_by_side(
                pair, self._batch, threads=threads, rounds=rounds, scratch=scratch, room=self.job.room
            )
        except TargetError:
            return None
        finally:
            shutil.rmtree(probe.folder, ignore_errors=True)
        return race.median(probe.name) / race.median(name)

    def _rehearsal(self) -> Sequence[Path]:
        """Files of batches as they are judged on: the first held-out one, and the largest of the evaluation data."""
        if not self._rehearsed:
            most = max(self.job.evaluation.parts, key=lambda part: len(part))
            batches = {tuple(a.shape for a in b.arrays()): b.arrays() for b in (self.job.held.parts[0], most)}
            for i, arrays in enumerate(batches.values()):
                file = self.scratch / f"judged{i}.npz"
                with full_disk(self.scratch):
                    save_arrays(file, {f"{i:03d}": array for i, array in enumerate(arrays)})
                self._rehearsed.append(file)
        return self._rehearsed

    def latest(self, name: str) -> Race | None:
        """The last race that trial `name` was in; None where it was in none."""
        return next((race for race in reversed(self._raced) if name in race.samples), None)

    def _blame(self, trial: Trial, why: str) -> str:
        """A further sentence on a file that never ran. To find out, parts of it are run here, which is not done with one that
        ended its process."""
        target, compressed = trial.candidate.target, trial.candidate.compressed
        if trial.seconds is not None or KILLED in why:
            return ""
        if type(target) not in self._blamed:
            try:
                self._blamed[type(target)] = target.blame(compressed)
            except Exception:  # it was refused; that a runtime or an exporter also fails here says nothing new
                self._blamed[type(target)] = ""
        operator = self._blamed[type(target)]
        return f" It cannot run the operator {operator}." if operator else ""

    def rule_out(self, name: str, why: str) -> None:
        """Note why a trial is not to be had; the others are none the worse for it."""
        self.trials[name] = replace(self.trials[name], refused=why)

    def alive(self) -> dict[str, Trial]:
        """The trials that their target accepted and that may be chosen, by name."""
        found = self.trials.items()
        return {name: trial for name, trial in found if trial.refused is None and not trial.candidate.reference}

    def promising(self, name: str) -> bool:
        """Whether the exported file keeps the promise on data held out of calibration: what the search may know."""
        found = self.on_held(name)
        return found is not None and found.within(self.job.max_drop)

    def lost(self, name: str) -> float:
        """How much the exported file loses on that data, as `Drop.amount`; infinitely much where it cannot be judged."""
        found = self.on_held(name)
        return found.amount if found is not None else float("inf")

    def on_held(self, name: str) -> Drop | None:
        """How much worse the exported file is on data held out of calibration; None where it cannot be judged."""
        if name not in self._held:
            seen = self._scored(name, self.job.held)
            if seen is None or seen.score is None:
                return None
            self._held[name] = drop(self.job.before_held, seen.score, self.job.metric)
        return self._held[name]

    def looked_at(self, name: str) -> bool:
        """Whether a trial was judged on held-out data."""
        return name in self._held

    def looked_good(self, name: str) -> bool:
        """Whether a trial was found promising, or was not looked at."""
        return name not in self._held or self._held[name].within(self.job.max_drop)

    def fastest_promising(self) -> Trial | None:
        """The fastest timed trial that is `promising`."""
        return next((t for t in self._by_speed() if self.promising(t.name)), None)

    def judge(self, name: str) -> Drop | None:
        """How much worse the exported file is than the original, in its own runtime, on the evaluation data; None where it
        cannot be judged."""
        if self.trials[name].score is None:
            self.job.progress(f"evaluating {name}", 0, 0)
            begin = monotonic()
            seen = self._scored(name, self.job.evaluation)
            if seen is None:
                return None
            self.trials[name] = seen
            self._judging = max(self._judging, monotonic() - begin)
        score = self.trials[name].score
        return None if score is None else drop(self.job.before, score, self.job.metric)

    def inside(self, name: str) -> bool:
        """Whether the exported file keeps the promise on the evaluation data."""
        found = self.judge(name)
        return found is not None and found.within(self.job.max_drop)

    def fastest_inside(self) -> Trial | None:
        """The fastest timed trial that keeps the promise on the evaluation data; slower ones are not judged."""
        for trial in self._by_speed():
            if self.promising(trial.name) and self.inside(trial.name):
                return self.trials[trial.name]
        return None

    def _scored(self, name: str, data: Batches) -> Trial | None:
        """A trial with its score on `data`; None where it fails, which rules it out. The metric worked for the original."""
        if self.trials[name].refused is not None:
            return None
        try:
            return score(self.trials[name], self.job.metric, data, self.job.threads, self.job.batch)
        except Exception as cause:  # whatever a runtime raises, or a metric for what the runtime gave
            self.rule_out(name, f"It could not be evaluated: {reason(cause)}")
            return None
        finally:
            if self.trials[name].nbytes > LARGE:
                trim()  # what the runtime held

    def closing(self) -> float:
        """Seconds from a verified trial to its artifact in place: one more race, as long as any so far, and `copying`."""
        now = [] if self._started is None else [monotonic() - self._started]
        return max([*self._races, *now], default=0.0) + self.copying()

    def copying(self) -> float:
        """Seconds from the last measurement to an artifact in place."""
        return CLOSING + max((t.nbytes for t in self.trials.values()), default=0) / COPIED

    def delivering(self) -> float:
        """Seconds to judge one trial on all data and to deliver it as it was timed."""
        return self._judging * (1 + len(self.job.held) / len(self.job.evaluation)) + self.copying()

    def verifying(self) -> float:
        """Seconds to judge one trial and to deliver it."""
        return self._judging + self.closing()

    def choosing(self) -> float:
        """Seconds to choose among what was tried: one trial may disappoint on evaluation data."""
        return self.delivering() - self.copying() + self.verifying()

    def near(self, name: str, times: float, most: int = 4) -> list[Trial]:
        """The promising trials that took at most `times` as long as trial `name`, without it; `most` of them, fastest first."""
        limit = times * (self.trials[name].seconds or 0.0)
        slower = [t for t in self._by_speed() if t.name != name and (t.seconds or 0.0) <= limit]
        return [t for t in slower if self.promising(t.name)][:most]

    def _by_speed(self) -> list[Trial]:
        timed = [t for t in self.alive().values() if t.seconds is not None]
        return sorted(timed, key=lambda t: t.seconds or 0.0)


def try_out(candidate: Candidate, folder: Path) -> Trial:
    """Export a candidate into `folder` (created). Whatever its target, an exporter or the disk raises is recorded, not raised:
    another may need less room, and what was tried before is still there to deliver.
    """
    try:
        missing = candidate.target.available()
        if missing is not None:
            return Trial(candidate, folder, refused=missing)
        folder.mkdir(parents=True)
        room(folder, sum(t.nbytes for t in candidate.compressed.model.module.parameters()))
        with full_disk(folder):
            candidate.target.export(candidate.compressed, folder)
        return Trial(candidate, folder, nbytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))
    except Exception as refusal:  # exporters raise anything
        shutil.rmtree(folder, ignore_errors=True)  # half a file only takes room
        return Trial(candidate, folder, refused=reason(refusal), full=isinstance(refusal, StorageError))


def score(trial: Trial, metric: Metric, data: Batches, threads: int, batch: int) -> Trial:
    """The metric of the exported file, in its own runtime, and what that runtime executed."""
    runner = trial.candidate.target.load(trial.folder, threads)
    return replace(trial, score=metric(answers(trial, runner, batch), data), audit=runner.audit())


def answers(trial: Trial, runner: Runner, batch: int) -> Predict:
    """The exported file as a metric calls it.

    A grid that is made at run time depends on which items run together: such a file is judged as it will be run, at
    most `batch` items at a time.
    """

    def in_turn(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        starts = range(0, len(inputs[0]), batch)
        pieces = [runner.predict(*(x[i : i + batch] for x in inputs)) for i in starts]
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    dynamic = any(isinstance(feed, Dynamic) for feed in trial.candidate.compressed.feeds.values())
    return predictor(in_turn if dynamic else runner.predict, runner.outputs)


def time_side_by_side(
    trials: Sequence[Trial],
    inputs: Sequence[np.ndarray],
    *,
    threads: int,
    rounds: int,
    scratch: Path,
    behind: float | None = None,
    starts: int = 1,
    failures: dict[str, str] | None = None,
    room: Room = CONTAINER,
    rehearsed: Sequence[Path] = (),
) -> Race:
    """Race the trials on one batch, each in a process of its own; the first is raced against itself as a control.

    Where one has more than `LARGE` bytes, no two are in memory at once. failures, room: as for `race`. rehearsed: batches
    that whoever was never timed has to survive first.
    """
    example = scratch / f"batch{len(inputs[0])}.npz"
    if not example.exists():  # the batch of a scratch folder is always the same
        with full_disk(scratch):
            save_arrays(example.with_suffix(".part"), {f"{i:03d}": array for i, array in enumerate(inputs)})
            example.with_suffix(".part").rename(example)
    contenders = [
        Contender(
            trial.name,
            "tersor.targets:timed",
            {
                "folder": str(trial.folder),
                "target": list(target_name(trial.candidate.target)),
                "example": str(example),
                "threads": threads,
                "rehearsed": list(map(str, rehearsed)) if _unknown(trial) else [],
            },
        )
        for trial in trials
    ]
    control = contenders[0].name
    return race(
        contenders,
        apart=max(trial.nbytes for trial in trials) > LARGE,
        rounds=rounds,
        control=control,
        threads=threads,
        behind=behind,
        starts=starts,
        failures=failures,
        room=room,
    )


def _unknown(trial: Trial) -> bool:
    return trial.seconds is None and not trial.candidate.reference and not trial.candidate.target.in_torch


def beside_float(file: Path, model: Model, inputs: Sequence[np.ndarray], threads: int) -> Race | None:
    """A written ONNX file ("file") raced in ONNX Runtime against the same model in float ("float"); None where it cannot be."""
    try:
        with scratch() as folder:
            return _beside_float(file, model, inputs, threads, folder)
    except (TargetError, StorageError):  # the file is written; only a comparison is missing
        return None


def _beside_float(file: Path, model: Model, inputs: Sequence[np.ndarray], threads: int, folder: Path) -> Race | None:
    target = target_called("onnxruntime", "fp32")
    plain = try_out(Candidate("float", target, Compressed(model)), folder / "float")
    if plain.refused is not None:
        return None
    (folder / "file").mkdir()
    with full_disk(folder):
        shutil.copyfile(file, folder / "file" / "model.onnx")
    trials = [plain, Trial(replace(plain.candidate, name="file"), folder / "file")]
    return time_side_by_side(trials, inputs, threads=threads, rounds=BESIDE, scratch=folder)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An `.npz` of arrays by name."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def one_batch(data: Batches, size: int) -> tuple[np.ndarray, ...]:
    """A batch of exactly `size` items; items are repeated where the data holds fewer."""
    whole = next(iter(data.rebatch(min(size, len(data)))))
    return tuple(np.resize(np.asarray(t), (size, *t.shape[1:])) for t in whole.inputs)
