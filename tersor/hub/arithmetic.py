"""What runtimes do between integers and floats, to the last bit where it is known.

A matrix gives an integer sum `acc`; its real value is `step * (acc + bias)` with `step = s_x * s_w` per channel. The
runtimes agree on that and differ in how they come from it to the next grid. Read from their sources (ONNX Runtime 1.31,
MLAS on x86; OpenVINO 2026.4, oneDNN on x86) and checked against their outputs (sums: for all pairs of codes):

ONNX Runtime   conv:  clip(rint(float32(acc + bias) * float32(step / s_y)) + z_y)
               add:   clip(rint(fma(a, r_a, fma(b, r_b, f)))), r = s / s_y, f = z_y - fma(r_a, z_a, r_b * z_b)
               input: clip(rint(x / s) + z)
OpenVINO       conv:  clip(rint((float32(acc) * step + bias * step) * i + z_y)), i = float32(255 / (high - low))
               input: clip(rint(fma(x, i, z)))
               A convolution that is added to something and then quantised is clipped to its own grid but not rounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tersor.target import Grid


@dataclass(frozen=True)
class Coded:
    """An activation on a grid: `codes` float32 (whole numbers, but for what a runtime leaves unrounded)."""

    codes: Tensor
    grid: Grid

    def real(self) -> Tensor:
        return (self.codes - self.grid.zero) * float(np.float32(self.grid.scale))


@dataclass(frozen=True)
class Sums:
    """Integer sums of a matrix, bias apart: `real = step * (acc + bias)`, then clipped to [low, high].

    acc: (N, channels, ...) when `axis` is 1, channels last when it is -1; exact whole numbers in float32 or float64.
    """

    acc: Tensor
    bias: Tensor
    step: Tensor
    axis: int
    low: float = -np.inf
    high: float = np.inf

    def along(self, channel: Tensor) -> Tensor:
        shape = [1] * self.acc.dim()
        shape[self.axis] = -1
        return channel.reshape(shape)

    def clipped(self, low: float, high: float) -> Sums:
        return replace(self, low=max(low, self.low), high=min(high, self.high))


@dataclass(frozen=True)
class Added:
    """The sum of two activations on grids, not yet on one itself, then clipped to [low, high]."""

    a: Coded
    b: Coded
    low: float = -np.inf
    high: float = np.inf

    def clipped(self, low: float, high: float) -> Added:
        return replace(self, low=max(low, self.low), high=min(high, self.high))


class Arithmetic(ABC):
    """One runtime's way between integers and floats."""

    @abstractmethod
    def real(self, sums: Sums) -> Tensor:
        """The float32 value of a matrix that nothing quantises."""

    @abstractmethod
    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        """Codes of a float32 activation."""

    @abstractmethod
    def requantize(self, sums: Sums, grid: Grid, rounded: bool) -> Tensor:
        """Codes of a matrix's output; `rounded` is False for the sums that a runtime adds unrounded."""

    @abstractmethod
    def add(self, added: Added, grid: Grid) -> Tensor:
        """Codes of a sum of two activations."""


class OnnxRuntimeArithmetic(Arithmetic):
    def real(self, sums: Sums) -> Tensor:
        return (_total(sums) * sums.along(sums.step)).clamp(sums.low, sums.high)

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        return (torch.round(x / float(np.float32(grid.scale))) + grid.zero).clamp(grid.low, grid.high)

    def requantize(self, sums: Sums, grid: Grid, rounded: bool) -> Tensor:
        factor = sums.step / torch.tensor(grid.scale, dtype=torch.float32)
        scaled = _total(sums) * sums.along(factor)
        scaled = scaled.clamp(sums.low / grid.scale, sums.high / grid.scale)
        return torch.round(scaled.clamp(grid.low - grid.zero, grid.high - grid.zero)) + grid.zero

    def add(self, added: Added, grid: Grid) -> Tensor:
        a, b, scale = added.a, added.b, np.float32(grid.scale)
        ra, rb = np.float32(a.grid.scale) / scale, np.float32(b.grid.scale) / scale
        zeros = _fused(torch.tensor(a.grid.zero), ra, torch.tensor(rb * np.float32(b.grid.zero)))
        total = _fused(a.codes, ra, _fused(b.codes, rb, grid.zero - zeros))
        total = total.clamp(added.low / grid.scale + grid.zero, added.high / grid.scale + grid.zero)
        return torch.round(total.clamp(grid.low, grid.high))


class OpenVINOArithmetic(Arithmetic):
    def real(self, sums: Sums) -> Tensor:
        value = sums.acc.float() * sums.along(sums.step) + sums.along(sums.bias.float() * sums.step)
        return value.clamp(sums.low, sums.high)

    def quantize(self, x: Tensor, grid: Grid) -> Tensor:
        fused = _fused(x, _inverse(grid), torch.tensor(grid.zero))
        return torch.round(fused).clamp(grid.low, grid.high)

    def requantize(self, sums: Sums, grid: Grid, rounded: bool) -> Tensor:
        code = self.real(sums) * _inverse(grid) + grid.zero
        return (torch.round(code) if rounded else code).clamp(grid.low, grid.high)

    def add(self, added: Added, grid: Grid) -> Tensor:
        total = (added.a.real() + added.b.real()).clamp(added.low, added.high)
        return torch.round(total * _inverse(grid) + grid.zero).clamp(grid.low, grid.high)


def _total(sums: Sums) -> Tensor:
    return (sums.acc.double() + sums.along(sums.bias)).float()


def _fused(x: Tensor, factor: float | np.float32, added: Tensor) -> Tensor:
    """`x * factor + added`, rounded to float32 once: the fused multiply-add of AVX2 and later."""
    return (x.double() * float(factor) + added.double()).float()


def _inverse(grid: Grid) -> float:
    """`255 / (high - low)` in float32, as OpenVINO derives it from the ends of the grid."""
    scale = np.float32(grid.scale)
    low, high = scale * np.float32(grid.low - grid.zero), scale * np.float32(grid.high - grid.zero)
    return float(np.float32(255.0) / (high - low))
