"""The decision, as plain numbers.

A table has rows (places) of options, and pair costs between the options of two rows (a convolution's time and bytes
depend on two groups). A plan picks one option a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """One choice in a row; `damage` in nats of the output divergence, `seconds` per batch, `nbytes` on disk."""

    name: str
    damage: float
    seconds: float = 0.0
    nbytes: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A cost that depends on the options of two rows: `seconds[i][j]` for option i of `first` and j of `second`."""

    first: str
    second: str
    seconds: tuple[tuple[float, ...], ...]
    nbytes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Table:
    """Rows of options by place, pair costs between rows, and what is spent whatever is chosen."""

    rows: Mapping[str, Sequence[Option]]
    pairs: Sequence[Pair] = ()
    seconds: float = 0.0
    nbytes: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What may be spent; None is unlimited. `drop` is judged on the exported file, the others by the planner too."""

    drop: float | None = None
    seconds: float | None = None
    nbytes: float | None = None


@dataclass(frozen=True)
class Plan:
    """One option a row, what it is predicted to cost, and a proved lower bound of the damage (`at_best`)."""

    choice: Mapping[str, str]
    damage: float
    seconds: float
    nbytes: float
    at_best: float
    notes: Mapping[str, str] = field(default_factory=dict)


Planner = Callable[[Table, Budget], Plan]
"""Least damage inside the budget. Raises `BudgetError` that says by how much the budget cannot be met."""
