from __future__ import annotations

import pytest
import torch
from laws_rewrite import RewriteLaws
from torch import Tensor, nn

from tersor.graph.model import Model, capture
from tersor.profile import measure
from tersor.rewrites import equalise as rules
from tersor.rewrites.equalise import equalise, equalise_where_it_gains
from tersor.rewrites.fold_norms import fold_norms


class TestEqualise(RewriteLaws):
    changes = ("padded_resnet", "unet")

    def rewrite(self, model: Model) -> Model:
        return equalise(fold_norms(model))


def _ranges(weight: Tensor, axis: int) -> Tensor:
    return weight.abs().movedim(axis, 0).flatten(1).amax(1)


def test_ranges_meet_in_the_middle() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    module.append(nn.Linear(6 * 4, 5))
    module[0].weight.data *= torch.logspace(-2, 2, 8).reshape(-1, 1, 1, 1)
    model = capture(module.eval(), (torch.randn(2, 3, 10, 10),))
    other = equalise(model)
    torch.testing.assert_close(
        _ranges(other.tensor("0.weight"), 0), _ranges(other.tensor("3.weight"), 1), rtol=1e-3, atol=0
    )
    columns = _ranges(other.tensor("6.weight"), 1).reshape(6, 4).amax(1)
    torch.testing.assert_close(_ranges(other.tensor("3.weight"), 0), columns, rtol=1e-3, atol=0)
    assert not torch.equal(other.tensor("0.weight"), model.tensor("0.weight"))


def test_dead_channels_stay_and_stay_finite() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    module[0].weight.data[2] = 0
    module[2].weight.data[:, 4] = 0
    other = equalise(capture(module.eval(), (torch.randn(2, 4),)))
    assert all(torch.isfinite(t).all() for _, t in other.tensors())
    assert other.tensor("0.weight")[2].abs().max() == 0


def test_depthwise_chains_are_equalised_link_by_link() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    module = nn.Sequential(*layers).eval()
    module[2].weight.data *= torch.logspace(-1, 1, 6).reshape(-1, 1, 1, 1)
    model = capture(module, (torch.randn(2, 3, 8, 8),))
    other = equalise(model)
    torch.testing.assert_close(
        _ranges(other.tensor("0.weight"), 0), _ranges(other.tensor("2.weight"), 0), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(other.run(*model.example)[0], model.run(*model.example)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.GELU(), nn.Sigmoid()])
def test_what_saturates_is_left_alone(between: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 3))
    model = capture(module.eval(), (torch.randn(2, 4),))
    assert torch.equal(equalise(model).tensor("0.weight"), model.tensor("0.weight"))


@pytest.mark.parametrize("groups", [1, 6])
def test_facts_follow_the_scales(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CLEARLY", float("inf"))  # every pair moves
    monkeypatch.setattr("tersor.maths.gram.NEGLIGIBLE", float("inf"))  # nothing is shrunk
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=groups),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    ]
    module = nn.Sequential(*layers).eval()
    module[0].weight.data *= torch.logspace(-1, 1, 6).reshape(-1, 1, 1, 1)
    needs = frozenset({"gram", "fisher", "gradient"})
    model = capture(module, (torch.randn(2, 3, 6, 6),))
    batches = [(torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)]
    other, facts = equalise_where_it_gains(model, measure(model, batches, needs))
    assert not torch.equal(other.tensor("2.weight"), model.tensor("2.weight"))
    for name, seen in measure(other, batches, needs).facts.items():
        for field in ("gram", "fisher", "activity", "gradient"):
            wanted, got = getattr(seen, field), getattr(facts[name], field)
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
