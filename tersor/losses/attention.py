"""Where a network looks: attention transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class Attention(Loss):
    """`mean (a / |a| - b / |b|)^2` per item, a and b the energy `sum_c |h_c|^power` at every place of an activation.

    h: (items, channels, places ...) of any number of channels, for student (`node`) and teacher (`teacher`, empty for the same
    name). Rank 3 is (items, places, channels). Maps of another resolution are averaged to the smaller one.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.
    """

    node: str
    teacher: str = ""
    power: float = 2.0

    @property
    def nodes(self) -> tuple[tuple[str, str], ...]:
        return ((self.node, self.teacher or self.node),)

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        a, b = (self._map(x) for x in (student.activation(self.node), teacher.activation(self.teacher or self.node)))
        if a.shape != b.shape:
            size = [min(pair) for pair in zip(a.shape[1:], b.shape[1:], strict=True)]
            a, b = (_averaged(x, size) for x in (a, b))
        a, b = (F.normalize(x.flatten(1), dim=1) for x in (a, b))
        return (a - b).square().sum(1).mean()

    def _map(self, h: Tensor) -> Tensor:
        return h.abs().pow(self.power).mean(-1 if h.ndim == 3 else 1)


def _averaged(x: Tensor, size: list[int]) -> Tensor:
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    return pool(x[:, None], size)[:, 0]
