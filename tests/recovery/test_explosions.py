"""Trainings whose loss is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from test_training import Killed, apart, run, same, state, stream
from torch import nn

from tersor.errors import DataError, DataWarning
from tersor.losses import loss_called
from tersor.losses.cross_entropy import CrossEntropy
from tersor.recovery.course import History, Training
from tersor.recovery.network import Network

TWO = Training(epochs=2.0, rate=0.02, average=0.5, save_every=0.0, loss=loss_called("kl + feature(node='relu')"))


def judge(student: Network) -> float:
    return apart(student.compressed().model)


def spoiling(at: int, kill: int = -1) -> Callable[[int, Mapping[str, nn.Parameter]], None]:
    """A gradient that is no number at one step, and an end at another."""

    def observe(step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        gradient = next(iter(parameters.values())).grad
        assert gradient is not None
        if step == at:
            gradient.fill_(math.nan)
        if step == kill:
            raise Killed

    return observe


def test_a_training_goes_on_from_its_best_state_at_half_the_rate():
    with pytest.warns(DataWarning, match=r"The loss was nan at step 14: .* at half the learning rate \(0\.01\)"):
        student, history = run("narrow", TWO, stream=stream(), judge=judge, observe=spoiling(13))
    assert history.returns == [15]
    assert [step for step, _ in history.judged] == [0, 10, 20]
    assert history.judged[2][1] < history.judged[0][1]
    assert all(bool(value.isfinite().all()) for value in state(student).values())
    assert History.of(history.values()) == history


def test_what_the_last_step_of_an_epoch_breaks_is_not_judged():
    with pytest.warns(DataWarning, match="The loss was nan at step 19"):
        student, history = run("narrow", TWO, stream=stream(), judge=judge, observe=spoiling(19))
    assert history.judged[2][1] <= history.judged[1][1]
    assert judge(student) == history.judged[2][1]


@pytest.mark.filterwarnings("ignore::tersor.errors.DataWarning")
def test_killed_after_it_went_back_it_goes_on_bit_for_bit(tmp_path: Path):
    file = tmp_path / "state"
    whole, wanted = run("narrow", TWO, stream=stream(), judge=judge, observe=spoiling(13))
    with pytest.raises(Killed):
        run("narrow", TWO, stream=stream(), judge=judge, checkpoint=file, observe=spoiling(13, kill=17))
    again, history = run("narrow", TWO, stream=stream(), judge=judge, checkpoint=file)
    assert same(whole, again)
    assert history.returns == wanted.returns


def test_a_loss_that_explodes_with_nothing_to_go_back_to_is_said():
    with pytest.raises(
        DataError, match=r"The loss is nan at step \d+; lower the learning rate \(it is 1e\+30\) or clip more"
    ):
        run("narrow", Training(epochs=2.0, rate=1e30, clip=0.0, loss=CrossEntropy()))


@pytest.mark.filterwarnings("ignore::tersor.errors.DataWarning")
def test_what_explodes_again_and_again_is_said():
    with pytest.raises(DataError, match="The loss is nan at step"):
        run("narrow", Training(epochs=4.0, rate=1e30, clip=0.0, loss=CrossEntropy()), judge=judge)
