"""Residual streams: what of a student is compared with what of its teacher, and what that gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stripes import images
from test_training import SHORT, original, run
from torch import nn

from tersor.errors import InputError
from tersor.graph.branches import branches, without
from tersor.graph.model import capture
from tersor.losses import loss_called
from tersor.measuring.batches import Batches
from tersor.recovery.course import Training
from tersor.recovery.loop import train
from tersor.recovery.network import Network, Teacher
from tersor.recovery.stream import Stream
from tersor.recovery.streams import alike
from tersor.rewrites.fold_norms import fold_norms
from tersor.target import Compressed


def test_residual_streams_come_back_too():
    found = {}
    for text in ("kl(temperature=4)", "kl(temperature=4) + 10*streams"):
        student, history = run("sparse", Training(loss=loss_called(text), epochs=3.0, rate=0.02))
        x, _ = images(300, 9)
        (name,) = [branch.addition for branch in branches(original())]
        ours, theirs = student((x,), [name], False), Teacher(original())((x,), [name])
        found[text] = float((ours.inner[name] - theirs.inner[name]).square().mean())
        assert history.losses[-1][1] < history.losses[0][1]
    assert found["kl(temperature=4) + 10*streams"] < 0.8 * found["kl(temperature=4)"]
    with pytest.raises(InputError, match="student and teacher have none of the same shape in common"):
        run("narrow", replace(SHORT, loss=loss_called("streams")))  # whose stream was cut itself


@pytest.mark.realdata
def test_streams_are_found_whatever_became_of_the_norms(loaders: Any):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = capture(loaders.resnet_cifar(20), (x[:2],))  # its norms are not folded yet
    student = Network(Compressed(fold_norms(model)))
    data = Batches.of(x, size=8)
    history = train(student, Teacher(model), Stream(data, 4), replace(SHORT, loss=loss_called("kl + streams(every=3)")))
    assert history.losses[0][1] < 1e-5  # it is its teacher
    streams = alike(student, Teacher(model), Stream(data, 4))
    assert len(streams) == 9  # every block
    assert all(a == b for a, b in streams)


@pytest.mark.realdata
def test_a_student_of_fewer_blocks_is_like_its_teacher_at_the_end_of_each_stage(loaders: Any):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher = capture(loaders.resnet_cifar(20), (x[:2],))
    student = capture(loaders.ResNetCifar(1).eval(), (x[:2],))  # ResNet-8
    sums = [[branch.addition for branch in branches(fold_norms(model))] for model in (student, teacher)]
    assert [len(each) for each in sums] == [3, 9]
    pairs = alike(Network(Compressed(student)), Teacher(teacher), Stream(Batches.of(x, size=8), 4))
    assert pairs == tuple(zip(sums[0], sums[1][2::3], strict=True))


def test_what_is_left_of_a_teacher_is_compared_where_it_was():
    x, _ = images(8, 0)
    torch.manual_seed(0)
    model = capture(Deep(6).eval(), (x[:2],))
    names = [branch.name for branch in branches(model)]
    sums = [branch.addition for branch in branches(model)]
    stream = Stream(Batches.of(x, size=8), 4)
    less = Network(Compressed(without(model, names[1:3])))
    assert alike(less, Teacher(model), stream) == tuple((sums[i], sums[i]) for i in (0, 3, 4, 5))
    other = capture(Deep(3).eval(), (x[:2],))  # whose nodes have the names of the first three
    pairs = alike(Network(Compressed(other)), Teacher(model), stream)
    assert pairs == tuple(zip(sums[:3], sums[1::2], strict=True))
    assert alike(less, Teacher(capture(Deep(0).eval(), (x[:2],))), stream) == ()  # which has no blocks


class Deep(nn.Module):
    """Convolutions, each added to what it read."""

    def __init__(self, depth: int):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth))
        self.last = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.last(x.mean((2, 3)))
