"""The teacher's decision as a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tersor.loss import Loss, Seen


@dataclass(frozen=True)
class HardDistillation(Loss):
    """`-log softmax(z)_k` with `k = argmax t`, mean over items. Source: Touvron et al. 2021, arXiv:2012.12877."""

    smoothing: float = 0.0
    output: str = ""

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z, t = (seen.scores(self.output) for seen in (student, teacher))
        return F.cross_entropy(z, t.argmax(-1), label_smoothing=self.smoothing)
