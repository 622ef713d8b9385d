"""The training loop, on a small residual network that really was trained."""

from __future__ import annotations

import errno
import itertools
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from stripes import images, trained

from tersor.deadline import Deadline, TimeUp, until
from tersor.fitting import Decisions, fit
from tersor.forms.affine import Affine
from tersor.graph.model import Model, capture
from tersor.losses import loss_called
from tersor.losses.kl import KL
from tersor.maths.augment import crop, flip
from tersor.maths.pattern import Anywhere
from tersor.measuring.batches import Batches
from tersor.profile import measure
from tersor.recovery.course import History, Training
from tersor.recovery.loop import train
from tersor.recovery.network import Network, Teacher
from tersor.recovery.stream import Stream
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.insert_norms import insert_norms, places
from tersor.site import matrices
from tersor.target import Compressed, Grid
from tersor.techniques.gptq import GPTQ
from tersor.techniques.sparse import Sparse

SHORT = Training(epochs=1.0, rate=0.02, save_every=1e9)


@cache
def original() -> Model:
    return fold_norms(capture(trained(), (images(2, 0)[0],)))


@cache
def data() -> Batches:
    return Batches.of(*images(640, 5), size=64)


@cache
def damaged(kind: str) -> Compressed:
    """The network after something cruel."""
    model, flat = original(), [batch.inputs for batch in data()]
    profile = measure(model, flat)
    names = [m.name for m in matrices(model)]
    if kind == "narrow":
        keep = {"stem.0": tuple(range(4)), "body.0": tuple(range(4))}
        keep = {name: kept for name, kept in keep.items() if name in {g.name for g in _groups(model)}}
        small = fit(model, flat, profile, Decisions(keep=keep)).model
        nodes = [m.node for m in places(small, names)]
        return insert_norms(Compressed(small), Network(Compressed(small), False).moments(nodes, flat))
    technique: Any = Sparse(Anywhere(0.15), repair=False) if kind == "sparse" else GPTQ(1)
    feeds: Any = "static" if kind == "binary" else "none"
    return fit(model, flat, profile, Decisions(techniques=dict.fromkeys(names, technique), feeds=feeds))


def _groups(model: Model) -> Any:
    from tersor.site import groups

    return [g for g in groups(model) if g.refused is None]


def stream(size: int = 64, **more: Any) -> Stream:
    return Stream(data(), size, seed=1, **more)


def run(kind: str, how: Training = SHORT, **more: Any) -> tuple[Network, History]:
    student = Network(damaged(kind), more.pop("moving", kind == "narrow"))
    history = train(student, Teacher(original()), more.pop("stream", stream()), how, **more)
    return student, history


def apart(model: Model) -> float:
    """How far the outputs are from the original's."""
    x, _ = images(300, 9)
    return float(KL(1.0)(Teacher(model)((x,)), Teacher(original())((x,)), None))


def state(student: Network) -> dict[str, torch.Tensor]:
    return {**{n: p.detach().clone() for n, p in student.parameters.items()}, **student.buffers}


def same(a: Network, b: Network) -> bool:
    ours, theirs = state(a), state(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("kind", ["narrow", "sparse", "binary"])
def test_a_damaged_network_comes_back_towards_the_original_without_labels(kind: str):
    epochs, rate = (12.0, 0.05) if kind == "binary" else (4.0, 0.02)
    student, history = run(kind, Training(epochs=epochs, rate=rate, average=0.9))
    after = student.compressed()
    assert apart(after.model) < 0.7 * apart(damaged(kind).model)
    assert history.losses[-1][1] < history.losses[0][1]
    assert history.steps == 10 * epochs


@pytest.mark.parametrize(("limit", "steps"), [(5.0, 3), (100.0, 95), (0.5, 1)])
def test_a_training_of_so_many_seconds_takes_the_steps_that_fit(
    limit: float, steps: int, monkeypatch: pytest.MonkeyPatch
):
    ticks = itertools.count()  # every look at the clock is a second: one at the start, then one a step
    monkeypatch.setattr("tersor.recovery.loop.time.monotonic", lambda: float(next(ticks)))
    told: list[tuple[int, int]] = []
    _, history = run("narrow", replace(SHORT, limit=limit), progress=lambda *done: told.append(done))
    assert history.steps == steps
    assert told[-1] == (steps, steps)
    assert history.losses[-1][0] == steps


def test_zeros_stay_zeros_and_grids_stay_grids():
    sparse, binary = (run(kind)[0].compressed() for kind in ("sparse", "binary"))
    for name, weight in sparse.weights.items():
        before = damaged("sparse").weights[name].dense()
        assert torch.equal(weight.dense() != 0, before != 0)
        assert torch.equal(sparse.model.tensor(name), weight.dense())
    for name, weight in binary.weights.items():
        assert isinstance(weight, Affine)
        assert weight.bits == 1
        assert torch.equal(binary.model.tensor(name), weight.dense())
    steps = [feed.scale for feed in binary.feeds.values() if isinstance(feed, Grid)]
    before = [feed.scale for feed in damaged("binary").feeds.values() if isinstance(feed, Grid)]
    assert steps != before
    assert all(step > 0 for step in steps)


def test_the_compressed_network_and_the_teacher_are_left_alone():
    before = damaged("narrow").model.digest(), original().digest()
    run("narrow")
    assert (damaged("narrow").model.digest(), original().digest()) == before


def test_the_same_seed_gives_the_same_student_bit_for_bit():
    assert same(run("narrow")[0], run("narrow")[0])
    assert same(run("narrow", stream=stream(workers=4, augment=flip))[0], run("narrow", stream=stream(augment=flip))[0])


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_killed_and_started_again_it_goes_on_bit_for_bit(tmp_path: Path, at: int, optimiser: str):
    rate = 0.02 if optimiser == "sgd" else 0.002
    loss = loss_called("kl + feature(node='relu') + 0.5 * cross_entropy")
    how = Training(epochs=1.0, loss=loss, optimiser=optimiser, rate=rate, average=0.8, save_every=0.0)
    file = tmp_path / "state"

    def judge(student: Network) -> float:
        return apart(student.compressed().model)

    def kill(step: int, parameters: Any) -> None:
        if step == at:
            raise Killed

    augmented = stream(augment=crop)
    whole, wanted = run("narrow", how, stream=augmented, judge=judge)
    with pytest.raises(Killed):
        run("narrow", how, stream=augmented, judge=judge, checkpoint=file, observe=kill)
    assert file.exists()
    again, history = run("narrow", how, stream=augmented, judge=judge, checkpoint=file)
    assert same(whole, again)
    assert history.losses == wanted.losses
    assert history.judged == wanted.judged


def test_a_damaged_checkpoint_or_one_of_another_network_is_not_used(tmp_path: Path):
    file = tmp_path / "state"
    run("narrow", Training(epochs=1.0, rate=0.02, save_every=0.0), checkpoint=file)
    other = run("sparse", checkpoint=file)[0]
    assert same(other, run("sparse")[0])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert same(run("narrow", checkpoint=file)[0], run("narrow")[0])


def test_batches_can_be_added_up():
    # A sum that rounds otherwise puts a ReLU on its other side one day, and all that follows differs: half an epoch.
    how = Training(epochs=0.5, rate=0.02, clip=0.0)
    one, _ = run("narrow", how, moving=False, stream=stream(64))
    half = Stream(_halved(stream(64)), 32, seed=1)
    object.__setattr__(half, "_order", lambda epoch: [(0, torch.arange(i, i + 32)) for i in range(0, 640, 32)])
    two, _ = run("narrow", replace(how, accumulate=2), moving=False, stream=half)
    for name, value in state(one).items():
        torch.testing.assert_close(state(two)[name], value, rtol=1e-4, atol=1e-6)


def _halved(whole: Stream) -> Batches:
    """The data in the order in which `whole` gives it in its first epoch."""
    return Batches(tuple(whole.batch(step)[0] for step in range(whole.steps)))


def test_it_ends_when_what_is_judged_is_good_enough_and_the_best_state_comes_out():
    bad = iter([4.0, 3.0, 1.0, 2.0, 5.0])
    states = []

    def judge(student: Network) -> float:
        states.append(state(student))
        return next(bad)

    student, history = run("narrow", Training(epochs=4.0, rate=0.02), judge=judge)
    assert [value for _, value in history.judged] == [4.0, 3.0, 1.0, 2.0, 5.0]
    assert all(torch.equal(value, states[2][name]) for name, value in state(student).items())
    bad = iter([4.0, 3.0, 1.0])
    _, history = run("narrow", Training(epochs=4.0, rate=0.02), judge=judge, enough=1.0)
    assert history.stopped
    assert history.steps == 20
    bad = iter([4.0])
    _, history = run("narrow", Training(epochs=4.0, rate=0.02), judge=judge, enough=4.0)
    assert history.stopped
    assert history.steps == 0


def test_what_training_makes_worse_stays_as_it_was_and_of_equals_the_latest_comes_out():
    for judged, which in (([1.0, 2.0, 3.0], 0), ([1.0, 1.0, 1.0], 2)):
        bad, states = iter(judged), []

        def judge(student: Network) -> float:
            states.append(state(student))  # noqa: B023 - called before the next round
            return next(bad)  # noqa: B023

        student, _ = run("narrow", Training(epochs=2.0, rate=0.02), judge=judge)
        assert all(torch.equal(value, states[which][name]) for name, value in state(student).items())


def test_the_last_state_comes_out_where_that_is_wished():
    bad, states = iter([1.0, 2.0, 3.0]), []

    def judge(student: Network) -> float:
        states.append(state(student))
        return next(bad)

    student, history = run("narrow", Training(epochs=2.0, rate=0.02, average=0.5, keep="last"), judge=judge)
    assert history.last
    assert all(torch.equal(value, states[2][name]) for name, value in state(student).items())


def test_who_learns_from_labels_alone_does_not_wait_for_a_teacher():
    class Silent(Teacher):
        def __call__(self, *asked: Any) -> Any:
            raise AssertionError("asked")

    student = Network(damaged("narrow"))
    history = train(student, Silent(original()), stream(), replace(SHORT, loss=loss_called("0.5*cross_entropy")))
    assert history.losses[-1][1] < history.losses[0][1]
    with pytest.raises(AssertionError, match="asked"):
        train(student, Silent(original()), stream(), replace(SHORT, loss=loss_called("kl + cross_entropy")))


def test_half_precision_trains_too():
    student, history = run("narrow", Training(epochs=2.0, rate=0.02, precision="bf16"))
    assert apart(student.compressed().model) < apart(damaged("narrow").model)
    assert all(math.isfinite(value) for _, value in history.losses)


def test_every_item_comes_once_an_epoch_whoever_makes_the_batch():
    made = stream(size=50)
    items = torch.cat([items for _, _, items in made.run(0, made.steps)])
    assert len(items) == len(set(items.tolist())) == 600  # 40 of 640 do not fill a batch
    again = torch.cat([items for _, _, items in stream(size=50, workers=3).run(0, made.steps)])
    assert torch.equal(items, again)
    later = torch.cat([items for _, _, items in made.run(made.steps, 2 * made.steps)])
    assert not torch.equal(items, later)
    small = Stream(data().take(30), 64)
    assert [len(batch) for _, batch, _ in small.run(0, 2)] == [30, 30]


def test_adapters_are_added_up_in_the_end_and_nothing_else_moves():
    model = damaged("narrow").model
    student = Network(Compressed(fold_norms(model)), rank=2)
    assert {name.split()[0] for name in student.parameters} == {"up", "down"}
    x, _ = images(50, 9)
    for name, parameter in student.parameters.items():
        if name.startswith("up"):
            parameter.data += 0.1
    seen, after = student((x,)), student.compressed().model
    torch.testing.assert_close(after.run(x)[0], seen.outputs["output"].detach(), rtol=1e-4, atol=1e-5)
    before = dict(fold_norms(model).tensors())
    moved = [name for name, t in after.tensors() if not torch.equal(t, before[name])]
    assert moved == ["head.weight"]
    difference = after.tensor("head.weight") - before["head.weight"]
    assert int(torch.linalg.matrix_rank(difference, atol=1e-5)) <= 2
    student = Network(damaged("sparse"), rank=2)
    train(student, Teacher(original()), stream(), SHORT)
    for name, weight in student.compressed().weights.items():
        assert torch.equal(weight.dense() != 0, damaged("sparse").weights[name].dense() != 0)


def test_tied_weights_stay_tied():
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    torch.manual_seed(0)
    x = torch.randn(64, 6)
    model = capture(Tied(), (x[:2],))
    profile = measure(model, [(x,)])
    fitted = fit(model, [(x,)], profile, Decisions(techniques={"first": GPTQ(3), "second": GPTQ(3)}))
    student = Network(fitted)
    seen = student((x,)).outputs["output"]
    after = student.compressed()
    torch.testing.assert_close(after.model.run(x)[0], seen.detach())
    assert torch.equal(after.model.tensor("first.weight"), after.model.tensor("second.weight"))


def test_what_the_teacher_said_is_kept_and_the_same(tmp_path: Path):
    teacher, plain = Teacher(original(), tmp_path, 640), Teacher(original())
    x, items = data().parts[0].inputs[0], torch.arange(64)
    first = teacher((x,), items=items).outputs["output"]
    again = teacher((torch.zeros_like(x),), items=items).outputs["output"]  # not computed again
    assert torch.equal(first, again)
    assert torch.equal(first, plain((x,)).outputs["output"])
    one = train(a := Network(damaged("narrow")), teacher, stream(), Training(epochs=2.0, rate=0.02))
    two = train(b := Network(damaged("narrow")), plain, stream(), Training(epochs=2.0, rate=0.02))
    assert same(a, b)
    assert one.losses == two.losses


def test_a_checkpoint_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    how = Training(epochs=1.0, rate=0.02, save_every=0.0)
    with pytest.warns(
        UserWarning, match=r"The training cannot save checkpoints: .* goes on, but would start over after a kill"
    ):
        history = train(
            Network(damaged("narrow")), Teacher(original()), stream(), how, checkpoint=tmp_path / "cache" / "state"
        )
    assert history.steps > 1


def test_a_deadline_ends_a_training_after_a_step_that_is_saved(tmp_path: Path) -> None:
    student, teacher, batches, path = Network(damaged("narrow")), Teacher(original()), stream(), tmp_path / "state"
    with until(Deadline(0.0, 1.0)), pytest.raises(TimeUp):
        train(student, teacher, batches, Training(epochs=3.0, rate=0.02), checkpoint=path)
    assert path.exists()


def test_a_full_disk_only_makes_the_teacher_answer_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has no room yet ends the process with a signal where it is written to."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    teacher, x = Teacher(original(), tmp_path, len(data())), data().parts[0].inputs[0]
    first = teacher((x,), items=torch.arange(64)).outputs["output"]
    again = teacher((torch.zeros_like(x),), items=torch.arange(64)).outputs["output"]
    assert not torch.equal(first, again)
    assert not [*tmp_path.iterdir()]
