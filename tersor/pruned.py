"""What pruning gives: the smaller model, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersor.graph.model import Model
from tersor.left_alone import LeftAlone
from tersor.measuring.metrics import Drop, Score
from tersor.narrowing import total
from tersor.records import plain
from tersor.recovery.course import History
from tersor.report import Watched
from tersor.site import matrices


@dataclass(frozen=True)
class Size:
    """Multiply-accumulates an item; the values of all matrices, and how many of them are not zero."""

    macs: int
    weights: int
    nonzero: int


@dataclass(frozen=True)
class Step:
    """One state on the way: its size, what it lost on held-out data (as `Drop.amount`), whether the promise held."""

    size: Size
    lost: float
    kept: bool


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and its score on evaluation data beside the original's.

    widths: (blocks that stay, blocks before) of every group that was narrowed. densities: by matrix, of those that are sparse.
    dropped: the residual branches that were left out, by the name of their last matrix. trained: the course of each step's
    training. outputs: what became of those that the metric does not look at. left_alone: layers and parameters of which nothing
    could go, and why.
    """

    name: str
    model: Model
    metric: str
    before: Score
    after: Score
    drop: Drop
    original: Size
    size: Size
    widths: Mapping[str, tuple[int, int]]
    densities: Mapping[str, float]
    dropped: tuple[str, ...]
    steps: tuple[Step, ...]
    trained: tuple[History, ...] = ()
    outputs: tuple[Watched, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def module(self) -> Any:
        """A module that takes and gives what the original does."""
        return self.model.module

    def to_json(self) -> dict[str, Any]:
        shown = (
            "name",
            "metric",
            "before",
            "after",
            "drop",
            "original",
            "size",
            "widths",
            "densities",
            "dropped",
            "steps",
            "trained",
            "outputs",
            "left_alone",
        )
        return {field: plain(getattr(self, field)) for field in shown}


def size(model: Model) -> Size:
    """Of the matrices of a model; a weight that is read twice counts once."""
    weights = {m.weight: model.tensor(m.weight) for m in matrices(model)}.values()
    return Size(total(model), sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights))
