"""What so many items can tell: exact intervals of a share, and what a promise on few items is worth.

Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Metric, Score, compares
from tersor.report import Interval, Regression
from tersor.units import several

SURE = 0.95
_FEW = 50  # items, below which no mean says much


def exact(hits: int, items: int) -> Interval:
    """The share hits / items, and its exact 95 % interval on new items like these."""
    from scipy.stats import beta

    rest = (1 - SURE) / 2
    low = float(beta.ppf(rest, hits, items - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - rest, hits + 1, items - hits)) if hits < items else 1.0
    return Interval(low, hits / items, high)


def enough(limit: float) -> int:
    """Items of which none may be lost, so that with 95 % confidence less than `limit` of new ones is."""
    return math.ceil(math.log(1 - SURE) / math.log(1 - limit)) if 0 < limit < 1 else 1


def cautions(metric: Metric, before: Score, batches: Batches, limit: float) -> Iterator[str]:
    """What a promise of `limit` on these items cannot mean; nothing where nothing is promised."""
    items = len(batches)
    if limit <= 0:
        return
    counted = bool(metric.bounded) and metric.original != "spare"  # a share of items, not a mean of real numbers
    if counted and items * limit < 1:
        lost = 1 - (1 - SURE) ** (1 / items)
        yield (
            f"The drop of at most {100 * limit:.4g} points is checked on {several(items, 'evaluation item')}, where one item "
            f"counts {100 / items:.3g} points. Even if none of them is lost, up to {100 * lost:.3g} points may be lost on new "
            f"data (95 % confidence); it takes at least {enough(limit):,} items to rule that out."
        )
    elif items < _FEW:
        yield (
            f"The drop is checked on only {several(items, 'evaluation item')}, which says little about new data; give some "
            "hundreds."
        )
    entries = list(before.values()) if isinstance(before, dict) else [before]
    if counted and not compares(metric, batches) and all(value == 1 for value in entries):
        yield (
            f"The original is right on all {items} evaluation items, as a model is on its own training data: on new data "
            "more may be lost than here. Give --eval-data that it was not trained on."
        )


def flips(found: Regression | None) -> tuple[str, ...]:
    """How many points of new data the decisions that became wrong stand for; nothing where nothing was decided."""
    if found is None or found.lost is None:
        return ()
    share = exact(found.lost, found.items)
    return (
        f"Of {several(found.items, 'evaluation item')}, each worth {100 / found.items:.3g} points, {found.lost} became wrong; "
        f"on new data that is {100 * share.low:.2g} to {100 * share.high:.2g} points (exact 95 % interval).",
    )
