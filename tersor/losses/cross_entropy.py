"""Hard labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tersor.loss import Loss, Seen, classes


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """`-log softmax(z)_label`, mean over items; `smoothing` of the label's mass is spread evenly over all classes.

    z: (items, ..., classes), labels (items, ...); several heads: labels by output name. The teacher is not asked.
    """

    smoothing: float = 0.0
    output: str = ""

    @property
    def labelled(self) -> bool:
        return True

    @property
    def taught(self) -> bool:
        return False

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        z = student.scores(self.output)
        return F.cross_entropy(z, classes(labels, z, self.output), label_smoothing=self.smoothing)
