"""Versions of a model share the values that they have in common, and none sees what another one changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.graph.model import Model, capture
from tersor.rewrites.shrink import mask


class Tied(nn.Module):
    """Two layers that share a weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("mean", torch.arange(6.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x - self.mean)))


def places(model: Model) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.tensors()}


def test_a_copy_takes_no_memory_for_values() -> None:
    model = capture(Tied(), (torch.randn(2, 6),))
    assert places(model.copy()) == places(model)
    assert not set(places(model.clone()).values()) & set(places(model).values())


def test_what_is_assigned_in_a_copy_is_seen_there_alone() -> None:
    model = capture(Tied(), (torch.randn(2, 6),))
    x = torch.randn(3, 6)
    before, copied = model.run(x)[0], model.copy()
    copied.assign("first.weight", torch.zeros(6, 6))
    copied.assign("mean", torch.zeros(6))
    assert torch.equal(model.run(x)[0], before)
    assert not torch.equal(copied.run(x)[0], before)
    assert not copied.tensor("second.weight").any()  # tied ones stay tied


def test_gradients_of_a_copy_are_its_own() -> None:
    model = capture(Tied(), (torch.randn(2, 6),))
    model.copy().tensor("first.weight").requires_grad_(True)
    assert not model.tensor("first.weight").requires_grad


def test_a_masked_model_leaves_the_whole_one_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model = capture(net, (torch.randn(2, 4),))
    x = torch.randn(5, 4)
    masked = mask(model, {"0": (0, 2)})
    assert int(masked.tensor("0.weight").count_nonzero()) == 8
    assert torch.equal(model.run(x)[0], net(x))


def test_a_users_module_shares_nothing_and_one_of_ours_its_parameters() -> None:
    net = Tied()
    apart, shared = capture(net, (torch.randn(2, 6),)), capture(net, (torch.randn(2, 6),), ours=True)
    assert apart.tensor("first.weight").data_ptr() != net.first.weight.data_ptr()
    assert shared.tensor("first.weight").data_ptr() == net.first.weight.data_ptr()
    assert shared.tensor("mean").data_ptr() != net.mean.data_ptr()  # a module that is run may change it
    assert net.first.weight.requires_grad
