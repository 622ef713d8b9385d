"""A histogram of a stream whose range is not known beforehand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOVES = 0.01
"""How far the moving average goes towards each item."""


class Histogram:
    """Counts over `bins` equal bins of a span that doubles, pairs of bins merging, until every value fits.

    `low` and `high` are the exact extremes, `usual` the moving average of those of each item. Counts come from at most
    `sample` evenly spaced values an update, so that the cost of an update does not grow with the size of the activation.
    """

    def __init__(self, bins: int = 2048, sample: int = 65536):
        self.bins, self.sample = bins, sample
        self.low, self.high = float("inf"), float("-inf")
        self.usual = (0.0, 0.0)
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self._start, self._span = 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Add finite values of any shape, items first."""
        if values.numel() == 0:
            return
        flat = values.detach().reshape(-1)
        ends = torch.stack(torch.aminmax(flat.reshape(len(values) if values.ndim else 1, -1), dim=1)).double()
        low, high = float(ends[0].min()), float(ends[1].max())
        self.usual = self._moved(ends)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._span == 0.0:
            self._start, self._span = low, max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-30)
        self._widen(low, high)
        stride = max(1, flat.numel() // self.sample)
        while math.gcd(stride, flat.numel()) > 1:  # else it may see one column of every image, such as the padding
            stride += 1
        self.counts += torch.histc(flat[::stride].double(), self.bins, self._start, self._start + self._span)

    def _moved(self, ends: Tensor) -> tuple[float, float]:
        """`usual` after the items with these extremes (2, items); the first item is where it begins."""
        start = ends[:, 0] if self.low > self.high else torch.tensor(self.usual, dtype=torch.float64)
        left = (1 - MOVES) ** torch.arange(ends.shape[1] - 1, -1, -1, dtype=torch.float64)
        low, high = (start * (1 - MOVES) ** ends.shape[1] + MOVES * (ends * left).sum(1)).tolist()
        return low, high

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
