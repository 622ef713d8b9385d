"""The only lossy step on weights.

A technique is a frozen dataclass: its fields are its settings, its `repr` is its name, and a search space is a list of
instances. The file name is the name that a user types.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from tersor.profile import Facts
from tersor.site import Matrix
from tersor.weight import Weight


class Technique(ABC):
    """Chooses new values for one matrix."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What `Profile` must hold: any of "gram", "fisher", "gradient"."""

    @abstractmethod
    def fit(self, matrix: Matrix, w: Tensor, facts: Facts, keep: Sequence[int] | None = None) -> Weight:
        """A value near `w` (the parameter's own shape, float32) that lies in this technique's set.

        `keep` lists the columns (of the unfolded matrix) that stay; the others come back as exact zeros.
        """
