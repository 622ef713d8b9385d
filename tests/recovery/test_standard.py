"""The loss that is taken where the user names none, on networks whose outputs mean different things."""

from __future__ import annotations

import pytest
import stripes
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError
from tersor.graph.model import capture
from tersor.losses import loss_called
from tersor.recovery.network import Network
from tersor.recovery.optimisers import optimiser_of, usual_rate
from tersor.recovery.standard import standard
from tersor.target import Compressed


class Heads(nn.Module):
    """Class scores, probabilities and a number, of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.of = stripes.trained()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.of(x)
        return scores, scores.softmax(1), scores[:, :1] - scores[:, 1:2]


class Tagger(nn.Module):
    """Class scores of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


class Place(Heads):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[2]


class Decision(Heads):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0].argmax(1)


def standard_of(module: nn.Module, inputs: Tensor) -> str:
    model = capture(module.eval(), (inputs,))
    return standard(model, model.example)


def test_every_output_is_heard_by_what_it_means():
    x = stripes.images(4, 0)[0]
    first, second, third, streams = standard_of(Heads(), x).split(" + ")
    names = capture(Heads().eval(), (x,)).outputs
    assert first == f"kl(temperature=4, output={names[0]!r})"
    assert second == f"kl(temperature=4, probabilities=True, output={names[1]!r})"
    assert third == f"1000*logit_mse(relative=True, output={names[2]!r})"
    assert streams == "1000*streams(optional=True)"
    loss_called(standard_of(Heads(), x))  # is an expression


def test_one_output_needs_no_name():
    assert standard_of(Place(), stripes.images(4, 0)[0]).startswith("1000*logit_mse(relative=True) + ")
    assert standard_of(Tagger(), torch.zeros(2, 5, dtype=torch.long)).startswith("kl(temperature=4) + ")


def test_whole_numbers_teach_nothing_and_that_is_said():
    with pytest.raises(
        InputError, match="are whole numbers, from which nothing can be learned; give a model that returns"
    ):
        standard_of(Decision(), stripes.images(4, 0)[0])


@pytest.mark.parametrize("network", [Place, Heads])
def test_outputs_that_are_no_classes_come_back_too(network: type[nn.Module]):
    torch.manual_seed(0)
    module, x = network().eval(), stripes.images(800, 0)[0]

    def apart(found: nn.Module) -> float:
        with torch.no_grad():
            (*_, ours), (*_, theirs) = ([m(x)] if network is Place else m(x) for m in (found, module))
        return float((ours - theirs).square().mean() / theirs.var())

    wish = {"macs": "5x", "metric": "cosine", "threads": 1}
    plain = tersor.prune(module, [x], **wish)
    trained = tersor.prune(module, [x], recover="4epochs", **wish)
    assert apart(trained.module) < 0.9 * apart(plain.module)
    assert trained.trained[0].losses[-1][1] < trained.trained[0].losses[0][1]


def test_muon_is_for_what_multiplies_and_tables_take_steps_of_sgd():
    student = Network(Compressed(capture(Tagger().eval(), (torch.zeros(2, 5, dtype=torch.long),))))
    made = optimiser_of(student.parameters, "muon", 0.1, 0.9, 0.01, student.multiplying)
    held = [
        ({tuple(p.shape) for p in part["params"]}, part["matrices"], part["weight_decay"]) for part in made.param_groups
    ]
    assert held == [({(3, 8)}, True, 0.01), ({(50, 8)}, False, 0.01), ({(3,)}, False, 0.0)]


def test_the_usual_rate_is_higher_where_steps_may_be_long():
    assert usual_rate("muon", steady=True, begun=True) > usual_rate("muon", steady=False, begun=True)
    assert usual_rate("sgd", steady=True, begun=False) > usual_rate("sgd", steady=True, begun=True)
    assert usual_rate("adamw", steady=True, begun=True) == usual_rate("adamw", steady=False, begun=False)
