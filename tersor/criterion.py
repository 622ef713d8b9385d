"""What a single weight is worth.

A criterion is a frozen dataclass whose fields are its settings; which places it decides about is the pattern's matter
(`maths/pattern.py`), what becomes of the weights that stay the technique's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tersor.profile import Facts
from tersor.site import Matrix


class Criterion(ABC):
    """Scores the weights of one matrix."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What `Facts` must hold: any of "gram", "fisher", "gradient", "movement"."""

    @abstractmethod
    def scores(self, matrix: Matrix, w: Tensor, facts: Facts) -> Tensor:
        """float64 (groups, rows, c), none below zero: how much each weight of `w` (groups, rows, c) is worth keeping."""
