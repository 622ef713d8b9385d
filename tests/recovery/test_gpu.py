"""Training on a GPU: the same student as on the CPU but for rounding, and recorded passes are those that were recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_explosions import spoiling
from test_training import SHORT, damaged, data, original

from tersor.errors import DataError, DataWarning
from tersor.graph.model import capture
from tersor.losses.cross_entropy import CrossEntropy
from tersor.maths.augment import crop, flip
from tersor.recovery import loop
from tersor.recovery.course import History, Training
from tersor.recovery.loop import train
from tersor.recovery.network import Network, Teacher
from tersor.recovery.replay import passed
from tersor.recovery.stream import Stream
from tersor.target import Compressed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def run(kind: str, device: str, how: Training = SHORT) -> tuple[Network, History]:
    student = Network(damaged(kind), kind == "narrow", device=device)
    return student, train(
        student, Teacher(original(), device=device), Stream(data(), 64, seed=1, device=student.device), how
    )


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


def test_muon_takes_the_steps_of_a_cpu_on_a_gpu():
    how = replace(SHORT, optimiser="muon", rate=0.01, decay=1e-3)
    (here, ours), (there, theirs) = run("narrow", "cpu", how), run("narrow", "cuda", how)
    assert theirs.losses[-1][1] == pytest.approx(ours.losses[-1][1], rel=0.1)
    for name, value in state(here).items():
        torch.testing.assert_close(state(there)[name], value, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", ["narrow", "binary"])
def test_replayed_steps_are_those_that_were_recorded(kind: str, monkeypatch: pytest.MonkeyPatch):
    replayed = state(run(kind, "cuda")[0])
    monkeypatch.setattr(loop, "Replay", lambda loss_of: lambda *given: passed(loss_of, *given))
    eager = state(run(kind, "cuda")[0])
    for name, value in eager.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-2, atol=1e-3)


def test_batches_made_on_a_gpu_are_those_of_the_cpu():
    def both(inputs: tuple[torch.Tensor, ...], drawn: torch.Generator) -> tuple[torch.Tensor, ...]:
        return crop(flip(inputs, drawn), drawn)

    here, there = (Stream(data(), 50, seed=1, augment=both, device=torch.device(name)) for name in ("cpu", "cuda"))
    for (_, ours, items), (_, theirs, others) in zip(here.run(11, 15), there.run(11, 15), strict=True):
        assert torch.equal(items, others)
        assert theirs.inputs[0].device.type == "cuda"
        assert torch.equal(ours.inputs[0], theirs.inputs[0].cpu())
        assert torch.equal(ours.labels, theirs.labels.cpu())


def test_half_precision_and_views_of_images_train_on_a_gpu():
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(8 * 6 * 6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x).relu()
            return self.linear(y.view(y.shape[0], -1))

    model = capture(Small().eval(), (data().parts[0].inputs[0],))
    student = Network(Compressed(model), device="cuda")
    stream = Stream(data(), 64, device=torch.device("cuda"))
    history = train(student, Teacher(model, device="cuda"), stream, replace(SHORT, precision="bf16", average=0.9))
    assert history.losses[-1][1] < 0.01  # the student is the teacher
    torch.testing.assert_close(student.compressed().model.tensor("linear.weight").stride(), (8 * 6 * 6, 1))


def test_a_loss_that_explodes_on_a_gpu_is_said():
    student = Network(damaged("narrow"), device="cuda")
    exploding = Training(epochs=2.0, rate=1e30, clip=0.0, loss=CrossEntropy())
    with pytest.raises(DataError, match="The loss is nan at step"):
        train(student, Teacher(original(), device="cuda"), Stream(data(), 64, device=student.device), exploding)


def test_a_training_goes_back_to_its_best_state_on_a_gpu():
    student = Network(damaged("narrow"), device="cuda")
    stream, twice = Stream(data(), 64, device=student.device), replace(SHORT, epochs=2.0)
    with pytest.warns(DataWarning, match="at half the learning rate"):
        history = train(
            student, Teacher(original(), device="cuda"), stream, twice, judge=lambda _: 1.0, observe=spoiling(13)
        )
    assert history.returns == [15]
    assert all(bool(t.isfinite().all()) for t in state(student).values())
