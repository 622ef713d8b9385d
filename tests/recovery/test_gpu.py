"""Training on a GPU: the same student as on the CPU but for rounding, and recorded passes are those that were recorded."""

from __future__ import annotations

import pytest
import torch
from test_training import SHORT, damaged, data, original

from tersor.recovery import loop
from tersor.recovery.loop import History, train
from tersor.recovery.network import Network, Teacher
from tersor.recovery.replay import passed
from tersor.recovery.stream import Stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def run(kind: str, device: str) -> tuple[Network, History]:
    student = Network(damaged(kind), kind == "narrow", device=device)
    return student, train(student, Teacher(original(), device=device), Stream(data(), 64, seed=1), SHORT)


def state(student: Network) -> dict[str, torch.Tensor]:
    return {n: p.detach().cpu() for n, p in {**student.parameters, **student.buffers}.items()}


@pytest.mark.parametrize("kind", ["narrow", "sparse", "binary"])
def test_the_student_of_a_gpu_is_that_of_the_cpu_but_for_rounding(kind: str):
    (here, ours), (there, theirs) = run(kind, "cpu"), run(kind, "cuda")
    assert theirs.losses[-1][1] == pytest.approx(ours.losses[-1][1], rel=0.1)
    assert {t.device.type for _, t in there.compressed().model.tensors()} == {"cpu"}
    if kind != "binary":  # where a rounding that falls the other way changes all that follows
        for name, value in state(here).items():
            torch.testing.assert_close(state(there)[name], value, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", ["narrow", "binary"])
def test_replayed_steps_are_those_that_were_recorded(kind: str, monkeypatch: pytest.MonkeyPatch):
    replayed = state(run(kind, "cuda")[0])
    monkeypatch.setattr(loop, "Replay", lambda loss_of: lambda *given: passed(loss_of, *given))
    eager = state(run(kind, "cuda")[0])
    for name, value in eager.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-2, atol=1e-3)
