"""A student begins with its teacher's values where it begins with its teacher's layers."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from laws_rewrite import RewriteLaws
from torch import nn

from tersor.graph.model import Model, capture
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.reuse import reuse


def chain(*layers: nn.Module, seed: int) -> Model:
    torch.manual_seed(seed)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return capture(nn.Sequential(*layers).eval(), (torch.randn(2, 8),))


class TestReuse(RewriteLaws):
    changes = ()  # a student that is its teacher

    def rewrite(self, model: Model) -> Model:
        student = model.copy()
        for name, tensor in list(student.tensors()):
            if isinstance(tensor, nn.Parameter):
                student.assign(name, torch.zeros_like(tensor))
        found, taken = reuse(student, model)
        same = {model.tensor(name).data_ptr() for name in taken}  # under whatever name
        for name, tensor in model.tensors():  # what it did not take is as it was: nothing
            if tensor.data_ptr() not in same and isinstance(tensor, nn.Parameter):
                assert not found.tensor(name).any()
                found.assign(name, tensor)
        return found


def test_layers_are_taken_until_they_differ():
    teacher = chain(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3), seed=0)
    student = chain(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3), seed=1)
    before = {name: t.clone() for name, t in student.tensors()}
    found, taken = reuse(student, teacher)
    assert set(taken) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name in taken:
        assert torch.equal(found.tensor(name), teacher.tensor(name))
        assert torch.equal(student.tensor(name), before[name])  # it is left alone
    assert torch.equal(found.tensor("4.weight"), before["4.weight"])  # behind another activation


def test_another_width_or_constant_is_another_layer():
    teacher = chain(nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3), seed=0)
    assert reuse(chain(nn.Linear(8, 5), nn.LeakyReLU(0.1), nn.Linear(5, 3), seed=1), teacher)[1] == ()
    assert set(reuse(chain(nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3), seed=1), teacher)[1]) == {
        "0.weight",
        "0.bias",
    }


def test_several_readers_of_one_value_take_from_their_own():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.q(x) @ self.k(x).T, 1) @ self.v(x)

    torch.manual_seed(0)
    teacher, student = (capture(Attention().eval(), (torch.randn(5, 8),)) for _ in range(2))
    found, taken = reuse(student, teacher)
    assert len(taken) == 6
    x = torch.randn(5, 8)
    torch.testing.assert_close(found.run(x), teacher.run(x))


@pytest.mark.realdata
def test_resnet20_has_the_early_layers_of_resnet56(loaders: ModuleType):
    torch.manual_seed(0)
    teacher, student = (
        fold_norms(capture(module.eval(), (torch.randn(2, 3, 32, 32),)))
        for module in (loaders.resnet_cifar(56), loaders.ResNetCifar(3))
    )
    _, taken = reuse(student, teacher)
    assert sum(name.endswith("weight") for name in taken) == 7  # the stem and three blocks of the first stage
