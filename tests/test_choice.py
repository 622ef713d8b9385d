"""The last choice: of what cannot be told apart in time the simplest, then what loses least; of equals, the smallest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tersor import choice
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
        return {n: self.trials[n] for n in self.known if self.judge(n).within(0.01)}

    def copying(self) -> float:
        return 0.0

    verifying = closing = copying

    def export(self, candidates: list[Candidate]) -> list[Trial]:
        made = {c.name: Trial(c, Path(), seconds=1.0) for c in candidates}
        self.trials |= made
        return [*made.values()]

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

    def time(self, names: list[str], rounds: int, behind: float, starts: int) -> Race:
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


SIMPLICITY = {"plain": 0, "folded": 1, "half": 2, "int8": 3, "pruned": 4}


def order(noise: float = 0.005, again: float = 1.0, **seconds: float) -> list[str]:
    """Of files of these seconds; the first against itself takes `again` times as long."""
    rng = np.random.default_rng(0)
    names = list(seconds)
    runs = {n: tuple(s * rng.normal(1, noise, 60)) for n, s in seconds.items()}
    runs[names[0] + AGAIN] = tuple(seconds[names[0]] * again * rng.normal(1, noise, 60))
    race = Race(runs, names[0], (0.0, 0.0), 1)
    return choice.preferred(race, names, SIMPLICITY.__getitem__, lambda name: (0.0,))


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"int8": 1.0, "plain": 1.001}, "plain"),  # no measurable gain
        ({"int8": 1.0, "plain": 1.3}, "int8"),
        ({"int8": 1.3, "plain": 1.0}, "plain"),  # int8 everywhere, and slower
        ({"pruned": 1.0, "int8": 1.001, "plain": 1.5}, "int8"),  # both gain, the simpler gains as much
        ({"pruned": 1.0, "int8": 1.2, "plain": 1.5}, "pruned"),
        ({"half": 1.0, "folded": 1.001, "plain": 1.001}, "plain"),
        ({"folded": 1.0, "plain": 1.2}, "folded"),
    ],
)
def test_of_what_overlaps_the_simplest_is_taken(seconds: dict[str, float], wanted: str) -> None:
    assert order(**seconds)[0] == wanted


def test_where_the_clock_cannot_tell_nothing_lossy_is_taken() -> None:
    """A file was a third slower than itself: a fifth says nothing."""
    assert order(again=1.33, int8=1.0, plain=1.2)[0] == "plain"
    assert order(again=1.33, int8=1.0, plain=2.0)[0] == "int8"


def test_whatever_is_not_worth_its_loss_is_not_even_the_last_resort() -> None:
    assert order(int8=1.3, pruned=1.2, plain=1.0, folded=1.1) == ["plain", "folded"]


def test_how_noisy_a_race_was() -> None:
    quiet = Race({"a": (1.0,) * 9, "a" + AGAIN: (1.0,) * 9}, "a", (0.0, 0.0), 1)
    loud = Race({"a": (1.0,) * 9, "a" + AGAIN: (0.9,) * 9}, "a", (0.0, 0.0), 1)
    assert choice.noise(quiet) == 0
    assert choice.noise(loud) == pytest.approx(1 / 9)
    assert choice.noise(Race({"a": (1.0,)}, None, (0.0, 0.0), 1)) == 0


def test_a_noisy_race_is_repeated_and_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.search.REPEATS", 2)
    job: Any = SimpleNamespace(model=MODEL, max_drop=0.01, deadline=Deadline())
    bench, found = Bench(0.0, plain=(1.0, 0.0, 1, 0.0)), iter([1.4, 1.2, 1.3])

    def time(names: list[str], rounds: int, behind: float, starts: int) -> Race:
        return Race(
            {"plain": (1.0,) * 9, "plain" + AGAIN: (next(found),) * 9, ORIGINAL: (2.0,) * 9}, "plain", (3.0, 3.5), 1
        )

    monkeypatch.setattr(bench, "time", time)
    search = Search(job, MODEL, bench, ())  # type: ignore[arg-type]
    _, race = search.choose()
    assert choice.noise(race) == pytest.approx(0.2)
    assert any(
        "differences below 20 % could not be measured" in note and "(load average 3.5)" in note for note in search.notes
    )
    assert next(found, None) is None


def test_two_candidates_of_one_name_are_two_trials() -> None:
    job: Any = SimpleNamespace(model=MODEL, max_drop=0.01, deadline=Deadline())
    search = Search(job, MODEL, Bench(0.0), ())  # type: ignore[arg-type]
    pair = [search._try([Candidate("eager fp32, pruned to 49 %", Eager(), Compressed(MODEL))], None) for _ in range(2)]
    assert [trial.name for (trial,) in pair] == ["eager fp32, pruned to 49 %", "eager fp32, pruned to 49 % (2)"]
    assert set(search.decided) == {trial.name for (trial,) in pair}
