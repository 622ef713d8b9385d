"""All trials of one run: exported, timed side by side, judged against the budget.

Every number that is claimed comes from here. Scores are computed when they are first asked for, so that the evaluation
data is read for as few artifacts as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tersor.inputs.job import Job
from tersor.measuring.clock import Race
from tersor.measuring.metrics import Drop, drop
from tersor.trials import Candidate, Trial, one_batch, score, time_side_by_side, try_out


class Workbench:
    """The trials of a job, by name, in a scratch folder that the caller removes."""

    def __init__(self, job: Job, scratch: Path):
        self.job = job
        self.scratch = scratch
        self.trials: dict[str, Trial] = {}
        self._held: dict[str, Drop] = {}
        self._batch = one_batch(job.calibration, job.batch)

    def export(self, candidates: Iterable[Candidate]) -> list[Trial]:
        """Try the candidates out; gives those that their target accepted."""
        fresh = []
        for candidate in candidates:
            self.job.progress(f"exporting {candidate.name}", 0, 0)
            trial = try_out(candidate, self.scratch / f"{len(self.trials):03d}")
            self.trials[trial.name] = trial
            fresh += [trial] if trial.refused is None else []
        return fresh

    def time(self, names: Sequence[str], rounds: int) -> Race:
        """Time trials on one batch, taking turns, each in a process of its own; the first also against itself."""
        self.job.progress(f"timing {len(names)} candidates", 0, 0)
        race = time_side_by_side(
            [self.trials[n] for n in names],
            self._batch,
            threads=self.job.threads,
            rounds=rounds,
            scratch=self.scratch,
        )
        for name in names:
            self.trials[name] = replace(self.trials[name], seconds=race.median(name))
        return race

    def alive(self) -> dict[str, Trial]:
        """The trials that their target accepted, by name."""
        return {name: trial for name, trial in self.trials.items() if trial.refused is None}

    def promising(self, name: str) -> bool:
        """Whether the exported file keeps the promise on data held out of calibration: what the search may know."""
        if name not in self._held:
            held = score(self.trials[name], self.job.metric, self.job.held, self.job.threads)
            assert held.score is not None
            self._held[name] = drop(self.job.before_held, held.score, self.job.metric)
        return self._held[name].within(self.job.max_drop)

    def fastest_promising(self) -> Trial | None:
        """The fastest timed trial that is `promising`."""
        return next((t for t in self._by_speed() if self.promising(t.name)), None)

    def judge(self, name: str) -> Drop:
        """How much worse the exported file is than the original, in its own runtime, on the evaluation data."""
        trial = self.trials[name]
        if trial.score is None:
            self.job.progress(f"judging {name}", 0, 0)
            trial = self.trials[name] = score(trial, self.job.metric, self.job.evaluation, self.job.threads)
        assert trial.score is not None
        return drop(self.job.before, trial.score, self.job.metric)

    def fastest_inside(self) -> Trial | None:
        """The fastest timed trial that keeps the promise on the evaluation data; slower ones are not judged."""
        for trial in self._by_speed():
            if self.promising(trial.name) and self.judge(trial.name).within(self.job.max_drop):
                return self.trials[trial.name]
        return None

    def _by_speed(self) -> list[Trial]:
        timed = [t for t in self.trials.values() if t.seconds is not None]
        return sorted(timed, key=lambda t: t.seconds or 0.0)
