from __future__ import annotations

import pytest
import torch
from laws_rewrite import RewriteLaws
from torch import nn

from tersor.graph.model import Model, capture
from tersor.rewrites.fold_norms import fold_norms


def _trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 2)
            m.bias.data.normal_()
    return module.eval()


CASES = {
    "convolution": (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), (3, 3, 9, 9), 0),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (3, 4, 9, 9), 0),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (3, 4, 9, 9), 0),
    "linear": (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (3, 5), 0),
    "norm first": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)), (3, 3, 5, 5), 1),
}


class TestFoldNorms(RewriteLaws):
    changes = ("padded_resnet", "unet")

    def rewrite(self, model: Model) -> Model:
        return fold_norms(model)


@pytest.mark.parametrize("name", CASES)
def test_same_outputs_with_fewer_norms(name: str) -> None:
    module, shape, left = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    model = capture(_trained(module), (x,))
    before = model.run(x)[0]
    folded = fold_norms(model)
    for batch in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(folded.run(batch)[0], model.run(batch)[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(before, model.run(x)[0])
    assert sum("batch_norm" in str(n.target) for n in folded.graph.nodes) == left
    folded.program()


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "shape"), [("resnet20", (2, 3, 32, 32)), ("kws", (2, 1, 49, 10))])
def test_real_models_keep_their_outputs(loaders, name: str, shape: tuple[int, ...]) -> None:
    module = loaders.resnet_cifar(20) if name == "resnet20" else loaders.kws_dscnn()
    x = torch.randn(shape)
    folded = fold_norms(capture(module, (x,)))
    torch.testing.assert_close(folded.run(x)[0], module(x).detach(), rtol=1e-4, atol=1e-3)
    assert not any("batch_norm" in str(n.target) for n in folded.graph.nodes)
