"""What a forward pass writes into slices has gradients, and computes what the module computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.graph.model import capture
from tersor.profile import measure


class Net(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.body = how, nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body(x))


def part(y: Tensor) -> Tensor:
    y[:, 2:] = y[:, 2:].sigmoid()
    return y


def whole(y: Tensor) -> Tensor:
    return y.copy_(y.tanh())


def into_zeros(y: Tensor) -> Tensor:
    held = torch.zeros(y.shape[0], 8)
    held[:, :6] = y
    return held


def spread(y: Tensor) -> Tensor:
    y[:, 1:4] = y[:, :1]
    return y


def masked(y: Tensor) -> Tensor:
    y[y < 0] = 0.0
    return y * 2


def constant(y: Tensor) -> Tensor:
    y[:, 0].zero_()
    y[:, 1].fill_(3.0)
    return y


def picked(y: Tensor) -> Tensor:
    y[:, torch.tensor([0, 2])] = y[:, torch.tensor([1, 3])].exp()
    return y


def stepped(y: Tensor) -> Tensor:
    y[..., ::2] += 1
    y[..., 1].mul_(y[..., 0])
    return y


def converted(y: Tensor) -> Tensor:
    y[:, :3] = (y[:, :3] * 10).round().to(torch.float64)
    return y


ALL = [part, whole, into_zeros, spread, masked, constant, picked, stepped, converted]


@pytest.mark.parametrize("how", ALL)
def test_written_slices_have_a_fisher(how: Callable[[Tensor], Tensor]) -> None:
    net = Net(how).eval()
    model = capture(net, (torch.randn(2, 12),))
    for count in (1, 3, 7):
        x = torch.randn(count, 12)
        torch.testing.assert_close(model.run(x)[0], net(x))
    seen = measure(model, [(torch.randn(32, 12),)], frozenset({"gram", "fisher", "gradient"}))
    first = seen.facts["body.0"]
    assert bool(first.fisher.isfinite().all())
    assert float(first.fisher.sum()) > 0
    assert first.gradient is not None
    assert float(first.gradient.sum()) > 0
