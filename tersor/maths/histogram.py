"""A histogram of a stream whose range is not known beforehand."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Histogram:
    """Counts over `bins` equal bins of a span that doubles, pairs of bins merging, until every value fits.

    `low` and `high` are the exact extremes. Counts come from at most `sample` evenly spaced values an update, so that
    the cost of an update does not grow with the size of the activation.
    """

    def __init__(self, bins: int = 2048, sample: int = 65536):
        self.bins, self.sample = bins, sample
        self.low, self.high = float("inf"), float("-inf")
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self._start, self._span = 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Add finite values of any shape."""
        if values.numel() == 0:
            return
        flat = values.detach().reshape(-1)
        low, high = (float(v) for v in torch.aminmax(flat))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._span == 0.0:
            self._start, self._span = low, max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-30)
        self._widen(low, high)
        stride = max(1, flat.numel() // self.sample)
        while math.gcd(stride, flat.numel()) > 1:  # else it may see one column of every image, such as the padding
            stride += 1
        self.counts += torch.histc(flat[::stride].double(), self.bins, self._start, self._start + self._span)

    @property
    def edges(self) -> Tensor:
        """float64 (bins + 1,), ascending."""
        return torch.linspace(self._start, self._start + self._span, self.bins + 1, dtype=torch.float64)

    def _widen(self, low: float, high: float) -> None:
        while low < self._start or high > self._start + self._span:
            merged = self.counts.reshape(-1, 2).sum(1)
            empty = torch.zeros_like(merged)
            if low < self._start:
                self.counts = torch.cat([empty, merged])
                self._start -= self._span
            else:
                self.counts = torch.cat([merged, empty])
            self._span *= 2
