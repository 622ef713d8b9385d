"""What is claimed, as one record: before and after, the plan, what changed, what was measured and on what machine.

The record is plain data: `to_json` and `from_json` are inverse, `to_html` is one page without network or script, `rows`
and `to_text` are the table that a terminal shows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    low: float
    value: float
    high: float

    def excludes(self, x: float) -> bool:
        return x < self.low or x > self.high


@dataclass(frozen=True)
class ClassChange:
    """One class: items that carry the label, and the shares of them that were right."""

    label: int
    items: int
    before: float
    after: float


@dataclass(frozen=True)
class Example:
    """One item that changed most.

    `label` is None without labels. `loss` is the fall of the right answer's margin (classes), or the error's growth.
    `picture` is a PNG data URI where the input looks like an image, else "" and `numbers` holds its first values.
    """

    item: int
    label: int | None
    before: str
    after: str
    loss: float
    picture: str = ""
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Regression:
    """What changed item by item. Fields about classes are None or empty where the output is no classifier's.

    gained: items that became right; lost: items that became wrong; changed: decisions that differ, right or wrong.
    difference: accuracy after minus before, on the same items, with its paired bootstrap interval.
    divergence: mean KL(before || after), nats. error: root mean square of the output's change over that of the output.
    """

    items: int
    error: float
    agreement: float | None = None
    divergence: float | None = None
    changed: int | None = None
    gained: int | None = None
    lost: int | None = None
    difference: Interval | None = None
    classes: tuple[ClassChange, ...] = ()
    worst: tuple[Example, ...] = ()
