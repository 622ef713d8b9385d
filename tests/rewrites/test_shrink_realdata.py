"""Removing is zeroing, on trained models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from test_shrink import assert_same, cut, free, size
from torch import Tensor, nn

from tersor.graph.model import capture
from tersor.rewrites.shrink import mask, shrink
from tersor.site import groups

pytestmark = pytest.mark.realdata

Loaded = tuple[nn.Module, Tensor]


def _textgenrnn(loaders: ModuleType) -> Loaded:
    pytest.importorskip("h5py")
    return loaders.textgenrnn()[0], torch.randint(1, 60, (2, 40))


def _mobilenet_v2(loaders: ModuleType) -> Loaded:
    pytest.importorskip("tflite")
    return importlib.import_module("tflite_float").mobilenet_v2(), torch.randn(2, 3, 224, 224)


MODELS: dict[str, tuple[Callable[[ModuleType], Loaded], int]] = {
    "resnet20": (lambda d: (d.resnet_cifar(20), torch.randn(2, 3, 32, 32)), 12),
    "resnet56": (lambda d: (d.resnet_cifar(56), torch.randn(2, 3, 32, 32)), 30),
    "mobilenet_v1_075": (lambda d: (d.mobilenet_v1_075(), torch.randn(2, 3, 224, 224)), 14),
    "kws_dscnn": (lambda d: (d.kws_dscnn(), torch.randn(2, 1, 49, 10)), 5),
    "stories260k": (lambda d: (d.stories260k()[0], torch.randint(0, 500, (2, 9))), 22),
    "textgenrnn": (_textgenrnn, 3),
    "mobilenet_v2": (_mobilenet_v2, 25),
}


SLOW = ("mobilenet_v2", "mobilenet_v1_075", "resnet56")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS])
def test_removing_is_zeroing(name: str, loaders: ModuleType) -> None:
    load, count = MODELS[name]
    torch.manual_seed(0)
    module, example = load(loaders)
    model = capture(module.eval(), (example,))
    found = free(model)
    assert len(found) == count
    for keep in [cut([found[0]]), cut([found[len(found) // 2]]), cut([found[-1]]), cut(found)]:
        shrunk = shrink(model, keep)
        assert_same(mask(model, keep), shrunk)
        assert size(shrunk) < size(model)
    shrunk.program()
    refused = [group for group in groups(model) if group.refused is not None]
    assert all(group.refused and group.refused.startswith("not prunable: ") for group in refused)
