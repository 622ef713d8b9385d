"""Weights that are computed from parameters become parameters; what else reads those parameters is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tersor.graph.model import capture
from tersor.quantising import quantize
from tersor.site import groups, matrices


class Parametrised(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.last = how(nn.Conv1d(2, 8, 3)), how(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().mean(2))


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_parametrised_weight_is_a_weight(how):
    torch.manual_seed(0)
    module, x = Parametrised(how).eval(), torch.randn(2, 2, 9)
    model = capture(module, (x,))
    assert [m.weight for m in matrices(model)] == ["first.weight", "last.weight"]
    torch.testing.assert_close(model.run(x)[0], module(x))
    assert {g.name: g.refused is None for g in groups(model)} == {"first": True, "last": False}
    assert sorted(name for name, _ in model.tensors()) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    again = capture(model.module, (x,))
    torch.testing.assert_close(again.run(x)[0], module(x))


def test_a_scaled_weight_at_the_top_of_a_module_and_one_that_is_read_elsewhere():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.rand(6, 1))
            self.shared = nn.Parameter(torch.randn(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.weight * self.scale), 2 * self.shared) + self.shared.sum(1)

    torch.manual_seed(0)
    module, x = Scaled().eval(), torch.randn(2, 4)
    model = capture(module, (x,))
    assert [m.weight for m in matrices(model)] == ["weight"]
    assert {name for name, _ in model.tensors()} == {"weight", "shared"}
    torch.testing.assert_close(model.run(x)[0], module(x))


def test_a_weight_made_of_constants_and_one_made_by_chance_are_left_alone():
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            blurred = F.conv1d(x, torch.full((1, 1, 3), 1 / 3), padding=1)
            return F.conv1d(blurred, self.weight * torch.rand_like(self.weight))

    model = capture(Made().eval(), (torch.randn(2, 1, 9),))
    assert not matrices(model)
    assert {name for name, _ in model.tensors()} == {"weight"}
    x = torch.randn(3, 1, 9)
    assert not torch.equal(model.run(x)[0], model.run(x)[0])


def test_weights_that_share_a_mask_are_weights():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
            self.register_buffer("mask", torch.ones(6, 6).tril().bool())

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x, self.first.weight * self.mask.float(), self.first.bias).relu()
            return F.linear(x, self.last.weight * self.mask.float(), self.last.bias)

    torch.manual_seed(0)
    module, x = Masked().eval(), torch.randn(2, 6)
    model = capture(module, (x,))
    assert [m.weight for m in matrices(model)] == ["first.weight", "last.weight"]
    assert sorted(name for name, _ in model.tensors()) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    torch.testing.assert_close(model.run(x)[0], module(x))


def test_a_weight_that_its_transpose_applies_too_is_one_layer():
    class Mirrored(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv_transpose2d(self.conv(x).relu(), self.conv.weight, padding=1)

    torch.manual_seed(0)
    module, x = Mirrored().eval(), torch.randn(2, 3, 6, 6)
    model = capture(module, (x,))
    assert [m.node for m in matrices(model)] == ["conv2d"]
    assert sum(p.numel() for p in model.module.parameters()) == 8 * 27 + 8
    found = quantize((module, x), list(torch.randn(64, 3, 6, 6).split(16)), weights=8, metric="cosine", threads=1)
    assert found.after > 0.99
    assert found.bytes[1] < found.bytes[0] / 2
