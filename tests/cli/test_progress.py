"""What is said of long work: how far it is and how long it still takes, and how a training went."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.cli.progress import Stages
from tersor.cli.training import course
from tersor.limits import Heard
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
        progress("timing 3 candidates", 0, 0)
        now += 45.0
        progress("timing 3 candidates", 0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "reading the data",
        "training",
        "training 130/400, 4 min 30 s left",
        "training 160/400, 4 min left",
        "training",
        "timing 3 candidates",
        "timing 3 candidates (45 s so far)",
    ]


def test_a_search_says_its_step_how_long_it_still_takes_and_the_best_so_far() -> None:
    said: list[str] = []
    heard = Heard(lambda stage, done, total: said.append(stage), steps=3)
    heard("reading the data", 0, 0)
    heard.enter()
    heard("timing 3 candidates", 0, 0)
    heard.best = lambda: "openvino int8, 0.45 ms"
    heard.enter(130.0)
    heard("fitting weights", 1, 9)
    assert said == [
        "step 1 of 3: reading the data",
        "step 2 of 3: timing 3 candidates",
        "step 3 of 3, at most about 3 min more: fitting weights (best so far: openvino int8, 0.45 ms)",
    ]
    assert str(heard) == "fitting weights (1 of 9)"


def test_every_step_of_a_search_is_announced(tmp_path: Path) -> None:
    said: list[str] = []
    x = torch.randn(400, 8)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    progress = lambda stage, done, total: said.append(stage)  # noqa: E731
    wish = {"metric": "agreement", "max_drop": "10%", "target": "onnxruntime", "threads": 1}
    tersor.compress(module, [(x,)], out=tmp_path / "out", progress=progress, **wish)
    steps = list(dict.fromkeys(stage.partition(",")[0].partition(":")[0] for stage in said))
    # nothing is announced while the folder is written, nor in step 3 where int8 turned out to be slower than float
    assert [step for step in steps if step != "step 3 of 5"] == [f"step {i} of 5" for i in (1, 2, 4)]
    assert steps == sorted(steps)
    assert any("(best so far: onnxruntime" in stage for stage in said)


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
            "trained 90 steps in 1 min 40 s: drop on held-out data 3.80 points before, 2.40 after epoch 2 of 2",
        ),
        (
            [0.01, 0.01],
            True,
            "trained 90 steps in 1 min 40 s: drop on held-out data 1.00 % before, 1.00 after epoch 1 of 1",
        ),
        (
            [0.01, 0.03, 0.02],
            False,
            "trained 90 steps in 1 min 40 s: drop on held-out data 1.00 points before and 2.00 at best after an epoch, so the "
            "weights from before the training were kept; try a longer --recover, another --rate, or, if the original was "
            "trained on this data, --training keep=last",
        ),
    ],
)
def test_how_a_training_went_is_a_sentence(judged: list[float], relative: bool, said: str) -> None:
    history = History([(90, 0.5)], [(45 * i, value) for i, value in enumerate(judged)], 90, 100.0)
    assert course(history, relative) == said


def test_a_training_that_was_not_needed_says_so() -> None:
    assert course(History(judged=[(0, 0.01)], stopped=True), False) == (
        "not trained: the drop on held-out data is 1.00 points, within the limit"
    )
    early = course(History(judged=[(0, 0.03), (9, 0.01)], steps=9, stopped=True), False)
    assert early.endswith("3.00 points before, 1.00 after epoch 1 of 1, within the limit")


def test_a_training_whose_last_state_came_out_says_what_that_is() -> None:
    whole = course(History(judged=[(0, 0.01), (9, 0.03)], steps=9, last=True), False)
    assert whole.endswith("1.00 points before, 3.00 after epoch 1 of 1")


def test_a_training_that_exploded_says_when() -> None:
    whole = course(History(judged=[(0, 0.03), (9, 0.01)], steps=9, seconds=60.0, returns=[3, 5]), False)
    assert whole.startswith(
        "trained 9 steps in 1 min (the loss diverged; went back to the best state at half the learning rate after step 3, 5): "
    )


def test_a_duration_has_two_units() -> None:
    found = [duration(s) for s in (0.4, 59.6, 60, 3599, 3600, 90_061)]
    assert found == ["0.4 s", "1 min", "1 min", "59 min 59 s", "1 h", "1 d 1 h"]
