"""A limit of time holds in every stage, and what is verified by then is delivered. No test here looks at a real clock."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stripes
import torch
from torch import nn

from tersor.deadline import Deadline, TimeUp, check, left, until
from tersor.delivery import verify
from tersor.errors import BudgetError
from tersor.measuring.batches import Batches
from tersor.measuring.clock import AGAIN, ENOUGH, Race
from tersor.pipeline import compress
from tersor.report import Report
from tersor.trials import Trial, Workbench


class Clock:
    """Stands still, but for `step` seconds at each look."""

    def __init__(self, step: float):
        self.now, self.step, self.looks = 0.0, step, 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock(1.0)
    for place in ("tersor.deadline", "tersor.limits", "tersor.trials", "tersor.inputs.job"):
        monkeypatch.setattr(f"{place}.monotonic", fake)
    monkeypatch.setattr("tersor.trials.time_side_by_side", _race)
    monkeypatch.setattr("tersor.graph.faithful._CALLS", 2)  # whose number depends on the real clock
    return fake


def _race(trials: Sequence[Trial], inputs: Any, *, rounds: int, **_: Any) -> Race:
    """Nobody is timed: a look a turn, and later trials take longer."""
    names = [trial.name for trial in trials] + [trials[0].name + AGAIN]
    samples: dict[str, list[float]] = {name: [] for name in names}
    try:
        for _round in range(rounds):
            for place, name in enumerate(names):
                check()
                samples[name].append(1e-3 + 1e-4 * place)
    except TimeUp:
        if min(map(len, samples.values())) < ENOUGH:
            raise
    return Race({name: tuple(seen) for name, seen in samples.items()}, trials[0].name, (0.0, 0.0), 1)


def searched(out: Path | None, limit: float | str, target: str = "onnxruntime") -> Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    data = Batches.of(*stripes.images(400, 2), size=50)
    network = (model, torch.zeros(2, 1, 8, 8))
    return compress(
        network, data, metric="agreement", max_drop="3%", target=target, threads=1, out=out, time_limit=limit
    )


def test_of_several_deadlines_the_soonest_counts(clock: Clock) -> None:
    clock.step = 0.0
    outer = Deadline.after(10)
    assert (outer.whole, left()) == (10, float("inf"))
    with until(outer):
        assert left() == 10
        with until(outer.sooner(lambda: 4)), until(Deadline()):
            assert left() == 6
            clock.now += 6
            with pytest.raises(TimeUp):
                check()
        check()
        clock.now += 4
        with pytest.raises(TimeUp):
            check()
    check()


def test_no_handler_of_failures_contains_it() -> None:
    """A user's metric or a candidate may fail with any exception; this is none of theirs."""
    assert not issubclass(TimeUp, Exception)


def test_what_is_verified_by_then_is_delivered(tmp_path: Path, clock: Clock) -> None:
    """Enough to time and judge what is lossless, and to begin with int8."""
    out, begin = tmp_path / "small", clock.now
    report = searched(out, 300)
    assert clock.now - begin < 360
    assert verify(out).difference < 1e-3
    wanted = (
        r"The time limit of 5 min ended the search at this stage: \w+.* Left out or cut short: "
        r"int8 and compiled candidates; mixed-precision and pruned candidates\."
    )
    assert any(re.match(wanted, note) for note in report.notes)
    assert report.after.name == "onnxruntime fp32"


def test_too_little_time_says_how_much_is_needed(tmp_path: Path, clock: Clock) -> None:
    out, begin = tmp_path / "small", clock.now
    wanted = r"limit of 30 s expired before any candidate was verified.*: .* Nothing was written. Allow .* or more"
    with pytest.raises(BudgetError, match=wanted):
        searched(out, 30)
    assert not out.exists()
    assert clock.now - begin < 36


def up(*_: Any, **__: Any) -> Any:
    raise TimeUp


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("tersor.search.Search._last_race", "no time for the last race: times are those of an earlier"),
        ("tersor.search.Search._references", "no time to make all files that the chosen one is compared with"),
        ("tersor.trials.Workbench.near", ""),
    ],
)
def test_what_is_verified_is_not_lost_where_the_time_ends_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    out = tmp_path / "small"
    clock.step = 0.01
    monkeypatch.setattr(place, up)
    report = searched(out, 3000, "onnxruntime:fp32")
    assert verify(out).difference < 1e-3
    assert report.after.seconds is not None
    assert any(said in note for note in report.notes)


def test_time_that_ends_before_anything_was_tried_is_no_fault_of_the_targets(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while as much is left as a choice would take."""
    clock.step = 0.01
    monkeypatch.setattr("tersor.trials.Workbench.export", up)
    with pytest.raises(BudgetError, match="expired before any candidate was verified"):
        searched(None, 3000, "onnxruntime:fp32")


def test_a_function_that_sleeps_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> Any:
        time.sleep(60)

    begin = time.monotonic()
    with pytest.raises(BudgetError, match="before any candidate was verified, at this stage: reading the data"):
        compress(nn.Linear(4, 2), slow, target="eager", threads=1, time_limit=0.5)
    assert time.monotonic() - begin < 30


def test_what_was_verified_first_is_delivered_where_the_time_ends_right_after(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, calls = Workbench.fastest_inside, []

    def once(bench: Workbench) -> Trial | None:
        calls.append(1)
        return judged(bench) if len(calls) == 1 else up()

    monkeypatch.setattr(Workbench, "fastest_inside", once)
    for place in ("Search.lossless_and_int8", "Search._last_race"):
        monkeypatch.setattr(f"tersor.search.{place}", up)
    clock.step = 0.01
    report = searched(tmp_path / "small", 3000)
    assert verify(tmp_path / "small").difference < 1e-3
    assert report.after.name == "onnxruntime fp32"
    assert report.ratio is not None  # the original was timed beside it
