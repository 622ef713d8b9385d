"""What an entry of the architecture zoo is, and how its weights are drawn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Architecture:
    """How to build one architecture, and what it is known not to do.

    `build` gives a module and its example inputs (two items). `least` is the share of matrix parameters that must lie in
    prunable groups; where it is below 0.6, `because` says why. `unexported` is a part of the message with which the
    untouched model, not only the pruned one, is refused by the ONNX exporter.
    """

    build: Callable[[], Built]
    fast: bool = False
    least: float = 0.6
    because: str = ""
    unexported: str = ""
    transformers: bool = False

    def built(self) -> Built:
        """The module in eval mode with weights that all matter, the same every time."""
        torch.manual_seed(0)
        module, example = self.build()
        return settled(awake(module).eval(), example), example


def awake(module: nn.Module) -> nn.Module:
    """Draw weights under which every parameter shows in the output: initial zeros, ones and tiny scales would hide errors."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.numel():
                _draw(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module


@torch.no_grad()
def settled(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """Give batch norms the statistics of what they read; with others, signals fade in a deep network."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        module(*example)
    return module.eval()


def _draw(parameter: Tensor) -> None:
    first = parameter.flatten()[0]
    if bool((parameter == first).all()):
        if first == 0:
            parameter.normal_(0, 0.1)
        else:
            parameter.uniform_(0.5, 1.5)
    elif parameter.ndim > 1:
        parameter.normal_(0, parameter[0].numel() ** -0.5)


def images(channels: int = 3, side: int = 32) -> tuple[Tensor]:
    """Two random images."""
    return (torch.randn(2, channels, side, side),)


def ids(length: int = 9, words: int = 50) -> tuple[Tensor]:
    """Two sequences of token numbers; the first few stay free for padding and the like."""
    return (torch.randint(3, words, (2, length)),)


class Named(nn.Module):
    """A transformers model as a function of tensors, which gives one tensor."""

    def __init__(self, inner: nn.Module, *names: str, pick: Callable[[Any], Tensor] = lambda out: out[0]):
        super().__init__()
        self.inner, self.names, self.pick = inner, names, pick

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        given = (first,) if second is None else (first, second)
        return self.pick(self.inner(**dict(zip(self.names, given, strict=True))))


def hub(build: Callable[[ModuleType], Built], **known: Any) -> Architecture:
    """An entry that is built from a configuration of transformers."""
    return Architecture(lambda: build(importlib.import_module("transformers")), transformers=True, **known)
