"""Along which axis a parameter lies is the operator's matter, not that of sizes which happen to agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.graph.model import Model, capture
from tersor.rewrites.shrink import mask, shrink
from tersor.site import groups

C = 8
"""Channels, and as many columns in every image."""
ROWS = 5
Between = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions and what stands between them, with parameters of as many values as there are channels and columns."""

    def __init__(self, between: Between, rank: int):
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv1d
        self.first, self.last = conv(3, C, 3, padding=1), conv(C, 4, 3, padding=1)
        self.slope, self.shift = (nn.Parameter(torch.rand(C) + 0.5) for _ in range(2))
        self.one = nn.Parameter(torch.rand(1))
        self.square = nn.Parameter(torch.randn(C, C))
        self.register_buffer("mean", torch.randn(C))
        self.register_buffer("var", torch.rand(C) + 0.5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def model_of(between: Between, rank: int = 2) -> Model:
    torch.manual_seed(0)
    shape = (2, 3, ROWS, C) if rank == 2 else (2, 3, C)
    return capture(Net(between, rank).eval(), (torch.randn(shape),))


ALONG_CHANNELS: dict[str, Between] = {
    "prelu": lambda n, x: F.prelu(x, n.slope),
    "product": lambda n, x: x * n.slope.view(C, 1, 1),
    "product by index": lambda n, x: x * n.slope[None, :, None, None],
    "sum": lambda n, x: x + n.slope.view(1, C, 1, 1),
    "addcmul": lambda n, x: torch.addcmul(n.shift.view(C, 1, 1), x, n.slope.view(C, 1, 1)),
    "lerp": lambda n, x: torch.lerp(x, x * 2, n.slope.view(C, 1, 1)),
    "batch norm": lambda n, x: F.batch_norm(x.relu(), n.mean, n.var, n.slope, n.shift),
    "instance norm": lambda n, x: F.instance_norm(x, None, None, n.slope, n.shift),
    "group norm": lambda n, x: F.group_norm(x, 4, n.slope, n.shift),
    "channels last": lambda n, x: (x.permute(0, 2, 3, 1) * n.slope).permute(0, 3, 1, 2),
    "transposed": lambda n, x: (x.transpose(1, 3) * n.slope).transpose(1, 3),
    "einsum": lambda n, x: torch.einsum("nchw,c->nchw", x, n.slope),
    "shuffled": lambda n, x: F.channel_shuffle(F.prelu(x, n.slope), 2),
    "twice": lambda n, x: F.prelu(x, n.slope) + F.prelu(-x, n.slope),
}
NOT_ALONG_CHANNELS: dict[str, Between] = {
    "prelu with one slope": lambda n, x: F.prelu(x, n.one),
    "along columns": lambda n, x: x * n.slope,
    "sum along columns": lambda n, x: x.relu() * (1 + n.shift),
    "linear along columns": lambda n, x: F.linear(x, n.square),
    "matrix product along columns": lambda n, x: x @ n.square,
    "layer norm along columns": lambda n, x: F.layer_norm(x, (C,), n.slope),
    "where along columns": lambda n, x: torch.where(n.mean > 0, x, 0.5 * x),
}


def same_as_zeroed(model: Model) -> list[str]:
    """Removes some blocks of each group, of one after the other and of all, and compares; the names of the groups."""
    found = [g for g in groups(model) if g.refused is None and not g.counted]
    keeps = [{g.name: range(1, g.blocks)} for g in found] + [{g.name: range(0, g.blocks, 2) for g in found}]
    for keep in keeps if found else ():
        for size in (2, 3):
            x = (torch.randn(size, *model.example[0].shape[1:]),)
            for a, b in zip(shrink(model, keep).run(*x), mask(model, keep).run(*x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return [g.name for g in found]


def axes_of(model: Model, tensor: str) -> set[str]:
    return {g.name for g in groups(model) if g.refused is None for m in g.members if m.tensor == tensor}


@pytest.mark.parametrize("name", ALONG_CHANNELS)
def test_parameters_go_with_their_channels(name: str):
    model = model_of(ALONG_CHANNELS[name])
    assert "first" in same_as_zeroed(model)
    assert axes_of(model, "slope")
    small = shrink(model, {"first": range(next(g.blocks for g in groups(model) if g.name == "first") // 2)})
    assert len(small.tensor("slope")) == len(small.tensor("first.weight")) < C


@pytest.mark.parametrize("name", NOT_ALONG_CHANNELS)
def test_parameters_along_another_axis_stay(name: str):
    model = model_of(NOT_ALONG_CHANNELS[name])
    assert "first" in same_as_zeroed(model)
    small = shrink(model, {"first": range(C // 2)})
    assert len(small.tensor("first.weight")) == C // 2
    for tensor, value in model.tensors():
        if not tensor.startswith(("first", "last")):
            assert small.tensor(tensor).shape == value.shape


def test_slopes_of_sequences_go_with_their_channels():
    model = model_of(lambda n, x: F.prelu(x, n.slope), rank=1)
    assert same_as_zeroed(model) == ["first"]
    assert len(shrink(model, {"first": range(3)}).tensor("slope")) == 3


def test_slopes_of_rows_go_with_their_neurons():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, C), nn.PReLU(C), nn.Linear(C, C), nn.PReLU(), nn.Linear(C, 3))
    model = capture(net.eval(), (torch.randn(2, 5),))
    assert same_as_zeroed(model) == ["0", "2"]


def test_slopes_of_a_single_channel():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.PReLU(1), nn.Conv2d(1, C, 3), nn.PReLU(C), nn.Conv2d(C, 2, 1))
    assert same_as_zeroed(capture(net.eval(), (torch.randn(2, 3, C, C),))) == ["2"]
