"""What an axis is called: by what is done with it, not by anyone's names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.graph.model import capture
from tersor.site import groups


class Layer(nn.Module):
    """A transformer layer of width 24 whose four heads are put together in one of three ways."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(20, 24)
        self.query, self.key, self.value, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.up, self.gate, self.down, self.head = (
            nn.Linear(24, 40),
            nn.Linear(24, 40),
            nn.Linear(40, 24),
            nn.Linear(24, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        q, k, v = (f(x).unflatten(-1, (4, 6)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "written":
            y = (q @ k.mT).softmax(-1) @ v
        else:
            y = torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


@pytest.mark.parametrize("how", ["fused", "written", "einsum"])
def test_of_a_transformer(how: str):
    found = groups(capture(Layer(how), (torch.randint(0, 20, (2, 7)),)))
    prunable = {(g.kind, g.blocks) for g in found if g.refused is None}
    assert {("heads", 4), ("residual", 24), ("neurons", 40)} <= prunable
    assert {g.kind for g in found if g.blocks == 6} <= {"head_width"}


def test_of_a_residual_network():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
            self.second, self.head = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).relu()
            return self.head((y + self.second(self.first(y).relu())).mean((2, 3)))

    found = groups(capture(Block(), (torch.randn(2, 3, 8, 8),)))
    assert {g.name: g.kind for g in found} == {"stem": "residual", "first": "channels", "head": "neurons"}


class Rotary(nn.Module):
    """Attention whose queries and keys are turned by their positions, as LLaMA does it; one stream around it."""

    def __init__(self, given: bool):
        super().__init__()
        self.embed, self.head = nn.Linear(10, 32), nn.Linear(32, 5)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.given = given
        self.register_buffer(
            "angle", torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.1, 0.01, 0.001])).repeat(1, 2)
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (f(x).unflatten(-1, (4, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = self.angle * positions[:, None, :, None] if self.given else self.angle
        q, k = (y * angle.cos() + self.turned(y) * angle.sin() for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(y)).mean(1))

    def turned(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        return torch.cat((-high, low), dim=-1)


@pytest.mark.parametrize("given", [False, True])
def test_places_inside_a_head_that_are_turned_are_no_stream(given: bool):
    found = groups(capture(Rotary(given).eval(), (torch.randn(2, 6, 10), torch.rand(2, 6))))
    kinds = {(g.name, g.blocks): g.kind for g in found if g.refused is None}
    assert kinds["q#2", 4] == "head_width"
    assert [name for (name, _), kind in kinds.items() if kind == "residual"] == ["embed"]


class Mixed(nn.Module):
    """Two branches and what puts them together."""

    def __init__(self, how: str):
        super().__init__()
        self.a, self.b, self.g, self.head = nn.Linear(10, 32), nn.Linear(10, 32), nn.Linear(10, 32), nn.Linear(32, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        g, a, b = self.g(x).sigmoid(), self.a(x), self.b(x)
        if self.how == "gated":
            y = g * a + (1 - g) * b
        elif self.how == "smooth":
            y = a + torch.tanh(a)
        else:
            y = a + b.relu()
        return self.head(y.mean(1))


@pytest.mark.parametrize("how", ["gated", "smooth"])
def test_what_a_gate_puts_together_is_no_stream(how: str):
    found = groups(capture(Mixed(how).eval(), (torch.randn(2, 6, 10),)))
    assert {g.kind for g in found if g.refused is None} == {"neurons"}


def test_a_branch_beside_another_is_a_stream():
    found = groups(capture(Mixed("added").eval(), (torch.randn(2, 6, 10),)))
    assert [g.kind for g in found if g.refused is None and g.blocks == 32][:1] == ["residual"]
