"""The last choice: of what cannot be told apart in time, what loses least; of equals, the smallest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tersor.deadline import Deadline
from tersor.measuring.clock import AGAIN, Race
from tersor.search import ORIGINAL, Search
from tersor.target import Compressed
from tersor.targets.eager import Eager
from tersor.trials import Candidate, Trial

MODEL: Any = None


class Bench:
    """Trials of known time, loss on held-out data, bytes, and loss on evaluation data; at most 0.01 may be lost."""

    def __init__(self, noise: float, **trials: tuple[float, float, int, float]):
        self.known, self.noise = trials, noise
        self.trials = {
            name: Trial(Candidate(name, Eager(), Compressed(MODEL)), Path(), nbytes, seconds)
            for name, (seconds, _, nbytes, _) in trials.items()
        }

    def alive(self) -> dict[str, Trial]:
        return self.trials

    def copying(self) -> float:
        return 0.0

    verifying = copying

    def export(self, candidates: list[Candidate]) -> None:
        self.trials |= {c.name: Trial(c, Path(), seconds=1.0) for c in candidates}

    def fastest_inside(self) -> Trial | None:
        inside = [self.trials[n] for n in self.known if self.judge(n).within(0.01)]
        return min(inside, key=lambda t: t.seconds, default=None)

    def near(self, name: str, times: float) -> list[Trial]:
        limit = times * self.trials[name].seconds
        return [self.trials[n] for n, t in self.known.items() if n != name and t[0] <= limit and t[1] <= 0.01]

    def lost(self, name: str) -> float:
        return self.known[name][1]

    def judge(self, name: str) -> Any:
        amount = self.known[name][3]
        return SimpleNamespace(within=lambda limit: amount <= limit)

    def inside(self, name: str) -> bool:
        return self.judge(name).within(0.01)

    def time(self, names: list[str], rounds: int, starts: int) -> Race:
        rng = np.random.default_rng(0)
        seconds = {n: self.trials[n].seconds for n in names} | {names[0] + AGAIN: self.trials[names[0]].seconds}
        runs = {n: tuple(s * rng.normal(1, self.noise, rounds)) for n, s in seconds.items()}
        return Race(runs, names[0], (0.0, 0.0), 1, {}, 0, starts)


def chosen(noise: float = 0.02, **trials: tuple[float, float, int, float]) -> tuple[str, list[str]]:
    job: Any = SimpleNamespace(model=MODEL, max_drop=0.01, deadline=Deadline())
    search = Search(job, MODEL, Bench(noise, **trials), ())  # type: ignore[arg-type]
    trial, race = search.choose()
    assert {trial.name, ORIGINAL} <= race.samples.keys()
    return trial.name, search.notes


@pytest.mark.parametrize(
    ("trials", "wanted"),
    [
        ({"bold": (1.0, 0.008, 5, 0.0), "plain": (1.001, 0.001, 9, 0.0)}, "plain"),  # no faster, loses more
        ({"bold": (1.0, 0.008, 5, 0.0), "plain": (1.08, 0.001, 9, 0.0)}, "bold"),  # faster
        ({"large": (1.0, -0.002, 9, 0.0), "small": (1.001, 0.0, 5, 0.0)}, "small"),  # neither loses anything
        ({"bold": (1.0, 0.008, 5, 0.0), "plain": (1.001, 0.001, 9, 0.02)}, "bold"),  # the other breaks the promise
    ],
)
def test_what_is_no_faster_is_not_worth_a_loss(trials, wanted):
    name, notes = chosen(**trials)
    assert name == wanted
    assert [
        note for note in notes if "was not measurably faster than" in note and wanted not in note.split()[0]
    ] == notes


def test_a_race_too_noisy_to_tell_does_not_give_a_tenth_away():
    name, _ = chosen(noise=0.6, bold=(1.0, 0.008, 5, 0.0), plain=(1.2, 0.001, 9, 0.0))
    assert name == "bold"
