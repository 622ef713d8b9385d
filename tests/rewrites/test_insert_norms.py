from __future__ import annotations

from collections.abc import Sequence

import torch
from laws_rewrite import RewriteLaws
from stripes import images, trained
from torch import nn
from zoo import batch

from tersor.graph.model import Model, capture
from tersor.graph.operators import aten
from tersor.recovery.network import Network
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.insert_norms import insert_norms, places
from tersor.site import matrices
from tersor.target import Compressed


class TestInsertNorms(RewriteLaws):
    changes = ("padded_resnet", "mixer")

    def rewrite(self, model: Model) -> Model:
        model = fold_norms(model)
        return inserted(model, batch(model, 8))


class TestInsertedNormsFolded(TestInsertNorms):
    def rewrite(self, model: Model) -> Model:
        return fold_norms(super().rewrite(model))


def test_a_folded_network_has_as_many_norms_as_before_with_the_statistics_of_the_data() -> None:
    x, _ = images(400, 3)
    before = capture(trained(), (x[:2],))
    model = fold_norms(before)
    assert not _norms(model)
    other = inserted(model, (x,))
    assert len(_norms(other)) == 2
    seen: dict[str, torch.Tensor] = {}
    other.interpret((x,), lambda node, value: seen.setdefault(node.name, value))
    for node in _norms(other):
        y = seen[node.args[0].name]
        mean, var = (other.tensor(str(part.target)) for part in node.args[3:5])
        torch.testing.assert_close(mean, y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(var, y.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_used_twice_gets_no_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.once = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.once(self.both(self.both(x).relu()))

    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    model = capture(Twice().eval(), (x,))
    other = inserted(model, (x,))
    assert len(_norms(other)) == 1


def inserted(model: Model, flat: Sequence[torch.Tensor]) -> Model:
    nodes = [m.node for m in places(model, [m.name for m in matrices(model)])]
    return insert_norms(Compressed(model), Network(Compressed(model), False).moments(nodes, [flat])).model


def _norms(model) -> list:
    return [node for node in model.graph.nodes if node.target is aten.batch_norm.default]
