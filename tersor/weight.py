"""What a tensor has become.

A `Weight` is an expression tree over *forms* (`forms/`): the leaves hold tensors, the inner nodes combine weights.
It is a frozen dataclass whose fields are tensors, plain numbers, strings, tuples or other weights; that is all the
store needs to write it to disk and read it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Self

import torch
from torch import Tensor


class Weight(ABC):
    """One value of a parameter, in the form in which it is stored."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The exact value, float32, in the parameter's shape; the same every time."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that a file grows by when this weight is written: the sum over its tensors."""

    @abstractmethod
    def nearest(self, latent: Tensor) -> Weight:
        """The closest point to `latent` (the parameter's shape) of the set that this weight was chosen from.

        Training runs through it with a straight-through gradient.
        """

    def rescaled(self, factors: Tensor) -> Weight | None:
        """This weight with each row of its matrix times its factor (rows,), above 0; None where the set has no such point.

        A batch norm behind the layer can be folded into a weight that has one.
        """
        del factors
        return None

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        assert is_dataclass(self)
        for value in (getattr(self, f.name) for f in fields(self)):
            if isinstance(value, Weight):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value

    def to(self, device: torch.device | str) -> Self:
        """The same weight with all its tensors on `device`."""
        assert is_dataclass(self)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if isinstance(v, Tensor | Weight)})
