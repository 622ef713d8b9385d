"""Which sets of places of a matrix may hold zeros.

A pattern turns scores (groups, rows, columns), larger being more worth keeping and none below zero, into the bool mask of
what is kept. Of equal scores the first in storage order wins, so that the same scores give the same mask everywhere.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from tersor.errors import InputError

RUN = 64  # columns


class Pattern(ABC):
    """A frozen dataclass; its fields are how much is kept, and of what."""

    @abstractmethod
    def kept(self, scores: Tensor) -> Tensor:
        """bool, the shape of `scores` (groups, rows, columns): true where a weight stays."""

    @property
    def run(self) -> int:
        """How many neighbouring columns can be chosen on their own, once those before them are settled."""
        return RUN


@dataclass(frozen=True)
class Anywhere(Pattern):
    """The share `density` of all single weights, at least one. Zeros of this kind buy bytes, not time, on most CPUs."""

    density: float = 0.5

    def __post_init__(self) -> None:
        _check(self.density, self)

    def kept(self, scores: Tensor) -> Tensor:
        return _largest(scores.reshape(1, -1), _count(self.density, scores.numel())).reshape(scores.shape)


@dataclass(frozen=True)
class EachRow(Pattern):
    """The share `density` of the weights of every row, at least one: scores are compared within an output only."""

    density: float = 0.5

    def __post_init__(self) -> None:
        _check(self.density, self)

    def kept(self, scores: Tensor) -> Tensor:
        return _largest(scores, _count(self.density, scores.shape[-1]))


@dataclass(frozen=True)
class NofM(Pattern):
    """`n` of every `m` consecutive columns of a row; where m does not divide, the last, shorter run of l columns keeps
    `ceil(n l / m)`. NofM(2, 4) is the pattern of sparse tensor cores."""

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise InputError(f"{self} is impossible; n of every m weights are kept, with 1 <= n <= m.")

    @property
    def run(self) -> int:
        return self.m

    def kept(self, scores: Tensor) -> Tensor:
        columns = scores.shape[-1]
        full = columns // self.m * self.m
        runs = scores[..., :full].unflatten(-1, (-1, self.m)) if full else scores[..., :0, None]
        head = _largest(runs, self.n).flatten(-2) if full else runs[..., 0].bool()
        return torch.cat([head, _largest(scores[..., full:], ceil(self.n * (columns - full) / self.m))], -1)


@dataclass(frozen=True)
class Tiles(Pattern):
    """The share `density` of tiles of `rows` x `columns` neighbours, at least one; tiles at the edges may be smaller."""

    rows: int = 16
    columns: int = 1
    density: float = 0.5

    def __post_init__(self) -> None:
        _check(self.density, self)
        if self.rows < 1 or self.columns < 1:
            raise InputError(f"{self} is impossible; a tile has at least one row and one column.")

    @property
    def run(self) -> int:
        return ceil(RUN / self.columns) * self.columns

    def kept(self, scores: Tensor) -> Tensor:
        _, rows, columns = scores.shape
        padded = F.pad(scores, (0, -columns % self.columns, 0, -rows % self.rows))
        tiles = padded.unflatten(2, (-1, self.columns)).unflatten(1, (-1, self.rows)).sum((2, 4))
        kept = _largest(tiles.reshape(1, -1), _count(self.density, tiles.numel())).reshape(tiles.shape)
        wide = kept.repeat_interleave(self.rows, 1).repeat_interleave(self.columns, 2)
        return wide[:, :rows, :columns]


def pattern_called(word: str) -> Callable[[float], Pattern]:
    """The pattern of a density that a user calls `anywhere`, `rows`, `2:4` (which needs none) or `16x1`."""
    if word in _WORDS:
        return _WORDS[word]
    found = re.fullmatch(r"(\d+)([:x])(\d+)", word)
    if found is None:
        raise InputError(
            f"There is no pattern {word!r}; write anywhere, rows, n:m such as 2:4, or a tile such as 16x1."
        )
    a, b = int(found[1]), int(found[3])
    one = NofM(a, b) if found[2] == ":" else Tiles(a, b, 1.0)
    return lambda density: one if isinstance(one, NofM) else Tiles(a, b, density)


def _check(density: float, pattern: Pattern) -> None:
    if not 0 < density <= 1:
        raise InputError(f"{pattern} is impossible; density is the share of weights kept, in (0, 1].")


def _count(density: float, places: int) -> int:
    return min(places, max(1, round(density * places)))


def _largest(scores: Tensor, count: int) -> Tensor:
    """bool: the `count` largest along the last axis, the first of equals."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    chosen = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


_WORDS: dict[str, Callable[[float], Pattern]] = {"anywhere": Anywhere, "rows": EachRow}
