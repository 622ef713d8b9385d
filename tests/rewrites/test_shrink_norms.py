"""Norms over an axis that became shorter: they go on as if what was removed were zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_shrink import assert_same, cut, free, size
from torch import Tensor, nn

from tersor.graph.model import Model, capture
from tersor.rewrites.shrink import mask, shrink
from tersor.site import groups

NORMS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "layer": (lambda: nn.LayerNorm(12), 0),
    "layer without bias": (lambda: nn.LayerNorm(12, bias=False), 0),
    "layer without weights": (lambda: nn.LayerNorm(12, elementwise_affine=False), 0),
    "root mean square": (lambda: nn.RMSNorm(12), 0),
    "root mean square without weights": (lambda: nn.RMSNorm(12, elementwise_affine=False), 0),
    "layer over an image": (lambda: nn.LayerNorm([12, 3, 3]), 2),
    "one group": (lambda: nn.GroupNorm(1, 12), 2),
    "four groups": (lambda: nn.GroupNorm(4, 12), 2),
    "groups without weights": (lambda: nn.GroupNorm(2, 12, affine=False), 2),
    "groups along a sequence": (lambda: nn.GroupNorm(3, 12), 1),
}


def _model(name: str) -> Model:
    make, rank = NORMS[name]
    torch.manual_seed(0)
    layer = (nn.Linear, nn.Conv1d, nn.Conv2d)[rank]
    kernel = (1,) if rank else ()
    module = nn.Sequential(layer(5, 12, *kernel), make(), nn.ReLU(), layer(12, 4, *kernel))
    for parameter in module[1].parameters():
        nn.init.uniform_(parameter, 0.3, 1.5)
    return capture(module.eval(), (torch.randn(2, 5, *[3] * rank) + 0.5,))


@pytest.mark.parametrize("name", NORMS)
def test_removing_is_zeroing(name: str) -> None:
    model = _model(name)
    found = free(model)
    assert len(found) == 1 + name.startswith(("four", "groups"))
    for keep in [cut([group]) for group in found] + [cut(found)]:
        shrunk = shrink(model, keep)
        assert_same(mask(model, keep), shrunk)
        assert size(shrunk) < size(model)
        shrunk.program()


@pytest.mark.parametrize("name", ["layer", "one group", "root mean square"])
def test_what_was_shrunk_can_be_shrunk_again(name: str) -> None:
    once = shrink(_model(name), cut(free(_model(name))))
    (group,) = (g for g in free(once) if any(m.tensor == "3.weight" for m in g.members))
    keep = cut([group])
    assert_same(mask(once, keep), shrink(once, keep))


def test_a_mean_that_a_caller_asks_for_counts_the_width() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            normed, mean, _ = torch.native_layer_norm(self.first(x), [12], None, None, 1e-5)
            return self.second(normed) + mean

    found = groups(capture(Asks().eval(), (torch.randn(2, 5),)))
    assert [g.counted for g in found if g.name == "first"] == [("native_layer_norm",)]
