"""Where the outputs are decisions, the real numbers before them are what counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.errors import ModelError
from tersor.graph.model import Model, capture
from tersor.graph.watched import judged, watched
from tersor.profile import measure


class Net(nn.Module):
    """Two layers whose scores are put out in one way or another."""

    def __init__(self, out: Callable[[Tensor], object]):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)
        self.out = out

    def forward(self, x: Tensor) -> object:
        return self.out(self.last(self.first(x).relu()))


def model_of(out: Callable[[Tensor], object]) -> Model:
    torch.manual_seed(0)
    return capture(Net(out).eval(), (torch.randn(2, 6),))


def fisher(model: Model) -> dict[str, float]:
    torch.manual_seed(1)
    facts = measure(model, [(torch.randn(64, 6),)]).facts
    return {name: float(each.fisher.sum()) for name, each in facts.items()}


DECISIONS: dict[str, Callable[[Tensor], object]] = {
    "class": lambda y: y.argmax(1),
    "class of probabilities": lambda y: y.softmax(1).argmax(-1),
    "best two": lambda y: y.topk(2, 1)[1],
    "flags": lambda y: y > 0,
    "flags in floats": lambda y: (y.sigmoid() > 0.5).float(),
    "rounded": lambda y: y.round(),
    "sign": torch.sign,
    "floor": lambda y: torch.div(y, 0.5, rounding_mode="floor"),
    "whole": lambda y: y.int(),
    "order": lambda y: y.argsort(1),
    "compared": lambda y: y[:, :2] > y[:, 2:],
    "counted": lambda y: (y > 0).sum(1),
    "picked": lambda y: torch.where(y > 0, torch.ones_like(y), torch.zeros_like(y)),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_every_layer_before_a_decision_is_felt(name: str):
    model = model_of(DECISIONS[name])
    assert watched(model).places
    assert all(total > 0 for total in fisher(model).values())


@pytest.mark.parametrize("name", ["class", "best two"])
def test_scores_before_a_choice_are_read_as_class_scores(name: str):
    decided, scores = model_of(DECISIONS[name]), model_of(lambda y: y)
    x = (torch.randn(3, 6),)
    (given,) = judged(decided, x, watched(decided))
    torch.testing.assert_close(given, scores.run(*x)[0])
    assert fisher(decided) == fisher(scores)


def test_before_flags_every_number_counts_alone():
    """As class scores a shift of all of them would be nothing, which turns every flag."""
    decided = model_of(DECISIONS["flags"])
    (given,) = judged(decided, (torch.randn(3, 6),), watched(decided))
    assert given.shape == (3, 4, 1)


@pytest.mark.parametrize(
    "out",
    [
        lambda y: y,
        lambda y: (y, y.argmax(1)),
        lambda y: {"labels": y.softmax(1).argmax(1), "scores": y},
        lambda y: y.max(1),  # the value beside its place
        lambda y: y * (y > 0),
        lambda y: y.detach(),
        lambda y: y + (y.round() - y).detach(),
    ],
)
def test_real_outputs_tell_all(out: Callable[[Tensor], object]):
    model = model_of(out)
    assert watched(model).places is None
    assert all(total > 0 for total in fisher(model).values())


class Heads(nn.Module):
    """Scores of one head, the decision of another."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x).relu()
        return self.one(x), self.other(x).argmax(1)


class Codebook(nn.Module):
    """An encoder that only the choice of a row depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.table, self.decoder = nn.Linear(6, 8), nn.Embedding(8, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.table(self.encoder(x).argmax(1)))


@pytest.mark.parametrize("net", [Heads, Codebook])
def test_a_decision_beside_real_outputs_is_felt(net: Callable[[], nn.Module]):
    torch.manual_seed(0)
    model = capture(net().eval(), (torch.randn(2, 6),))
    assert len(watched(model).places or ()) == 2
    assert all(total > 0 for total in fisher(model).values())


def test_weights_have_gradients_before_a_decision():
    facts = measure(model_of(DECISIONS["class"]), [(torch.randn(4, 6),)], frozenset({"gradient"})).facts
    assert all(each.gradient is not None and float(each.gradient.sum()) > 0 for each in facts.values())


def test_an_operator_without_a_derivative_is_named_with_its_line():
    @torch.library.custom_op("tersor_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(twice(self.first(x)))

    model = capture(Own().eval(), (torch.randn(2, 4),))
    with pytest.raises(
        ModelError, match=r"the model has none at File .*test_watched\.py.*tersor_tests\.twice\.default"
    ):
        measure(model, [(torch.randn(8, 4),)])
