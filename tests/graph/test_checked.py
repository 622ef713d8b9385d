"""Minus infinity that is taken away again is a mask; what reaches an output is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.errors import DataError
from tersor.graph.model import capture
from tersor.inputs.models import bring, captured
from tersor.profile import measure

INFINITY = float("inf")
NEEDS = frozenset({"gram", "fisher", "gradient"})


class Attention(nn.Module):
    def __init__(self, how: Callable[[Attention, Tensor, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.q, self.k, self.v, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.register_buffer("past", torch.full((4, 4), -INFINITY).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.how(self, self.q(x) @ self.k(x).transpose(1, 2), x)
        return self.head(scores @ self.v(x)).mean(1)


def filled(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return scores.masked_fill(x[:, None, :, 0] > 0.5, -INFINITY).softmax(-1).nan_to_num()


def chosen(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return torch.where(x[:, None, :, 0] < 2.5, scores, -INFINITY).softmax(-1).nan_to_num()


def added(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return (scores + net.past).softmax(-1)


def smallest(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return scores.masked_fill(x[:, None, :, 0] > 0.5, torch.finfo(scores.dtype).min).softmax(-1)


def clamped(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return (1 / scores.relu()).clamp(max=3.0)


def logarithm(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    return torch.where(scores > 0, scores.relu().log(), 0.0)


def over_itself(net: Attention, scores: Tensor, x: Tensor) -> Tensor:
    positive = scores.relu()
    return torch.where(positive > 0, positive / positive, 0.0) * scores


@pytest.mark.parametrize("how", [filled, chosen, added, smallest, clamped, logarithm, over_itself])
def test_infinities_that_reach_no_output_are_no_fault(how: Callable[..., Tensor]) -> None:
    net = Attention(how).eval()
    model = captured(bring((net, torch.randn(2, 4, 6))))
    x = torch.randn(64, 4, 6)
    torch.testing.assert_close(model.run(x)[0], net(x))
    seen = measure(model, [(x,)], NEEDS)
    for name, facts in seen.facts.items():
        assert all(bool(t.isfinite().all()) for t in (facts.gram, facts.fisher, facts.activity)), name
    assert float(seen.facts["v"].fisher.sum()) > 0
    assert float(seen.facts["q"].fisher.sum()) > 0
    assert all(abs(r.low) < INFINITY and abs(r.high) < INFINITY for r in seen.ranges.values())


def test_what_reaches_an_output_is_one_sentence_with_the_line() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.masked_fill(x < -100, -INFINITY).exp()
            return self.head(x).sqrt().abs()

    net = Root().eval()
    with torch.no_grad():
        net.head.bias.fill_(50.0)
    model = capture(net, (torch.randn(2, 3),))
    with pytest.raises(DataError) as raised:
        measure(model, [(torch.cat([torch.randn(8, 3), torch.full((1, 3), 9.0)]),)], NEEDS)
    message = str(raised.value)
    assert "\n" not in message
    assert "outputs hold" in message
    assert "begin in its activation 'sqrt'" in message
    assert "in forward; check" in message
