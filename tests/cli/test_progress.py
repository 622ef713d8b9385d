"""What is said of long work: how far it is and how long it still takes, and how a training went."""

from __future__ import annotations

import io

import pytest

from tersor.cli.progress import Stages
from tersor.cli.training import course
from tersor.recovery.course import History
from tersor.units import duration


def test_a_log_hears_of_each_stage_once_and_of_a_long_one_how_long_it_still_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    with Stages(clock=lambda: now) as progress:
        progress("reading the data", 0, 0)
        for step in range(100, 161):  # as of a training that goes on after a kill
            progress("training", step, 400)
            now += 1.0
        progress("training", 1, 400)  # another one
    assert capsys.readouterr().err.splitlines() == [
        "reading the data",
        "training",
        "training 130/400, 4 min 30 s left",
        "training 160/400, 4 min 0 s left",
        "training",
    ]


def test_a_terminal_sees_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Stages() as progress:
        progress("reading the data", 0, 0)
        for step in range(3):
            progress("training", step, 400)
    assert "training" in screen.getvalue()
    assert "2/400" in screen.getvalue()
    assert "left" in screen.getvalue()


@pytest.mark.parametrize(
    ("judged", "relative", "said"),
    [
        ([], False, "trained 90 steps in 1 min 40 s"),
        (
            [0.038, 0.0762, 0.024],
            False,
            "trained 90 steps in 1 min 40 s: lost on held-out data 3.80 points before, 2.40 after epoch 2 of 2",
        ),
        (
            [0.01, 0.01],
            True,
            "trained 90 steps in 1 min 40 s: lost on held-out data 1.00 % before, 1.00 after epoch 1 of 1",
        ),
        (
            [0.01, 0.03, 0.02],
            False,
            "trained 90 steps in 1 min 40 s: lost on held-out data 1.00 points before and 2.00 at best after an epoch, so that "
            "it was left as it was; try a longer --recover or another --rate, or --training keep=last where the original was "
            "trained on this data and knows it by heart",
        ),
    ],
)
def test_how_a_training_went_is_a_sentence(judged: list[float], relative: bool, said: str) -> None:
    history = History([(90, 0.5)], [(45 * i, value) for i, value in enumerate(judged)], 90, 100.0)
    assert course(history, relative) == said


def test_a_training_that_was_not_needed_says_so() -> None:
    assert course(History(judged=[(0, 0.01)], stopped=True), False) == (
        "not trained: lost on held-out data 1.00 points, which is enough"
    )
    early = course(History(judged=[(0, 0.03), (9, 0.01)], steps=9, stopped=True), False)
    assert early.endswith("3.00 points before, 1.00 after epoch 1 of 1, which is enough")


def test_a_training_whose_last_state_came_out_says_what_that_is() -> None:
    whole = course(History(judged=[(0, 0.01), (9, 0.03)], steps=9, last=True), False)
    assert whole.endswith("1.00 points before, 3.00 after epoch 1 of 1")


def test_a_training_that_exploded_says_when() -> None:
    whole = course(History(judged=[(0, 0.03), (9, 0.01)], steps=9, seconds=60.0, returns=[3, 5]), False)
    assert whole.startswith(
        "trained 9 steps in 1 min 0 s (the loss exploded; back to the best state at half the rate after step 3, 5): lost on"
    )


def test_a_duration_has_two_units() -> None:
    found = [duration(s) for s in (0.4, 59.6, 60, 3599, 3600, 90_061)]
    assert found == ["0 s", "1 min 0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"]
