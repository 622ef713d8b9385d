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
