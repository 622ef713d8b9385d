"""What is to be pruned, from the words of a user: shares after each step, patterns, criteria, and what contradicts what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tersor import widths
from tersor.calibrated import MEASURED, NEEDS
from tersor.criteria import criterion_called
from tersor.errors import InputError
from tersor.graph.kinds import KINDS
from tersor.inputs import amounts
from tersor.maths.pattern import NofM, pattern_called
from tersor.maths.schedule import SCHEDULES, geometric
from tersor.narrowing import Rank
from tersor.sensed import Sensitivity
from tersor.technique import Technique
from tersor.techniques.sparse import Sparse
from tersor.techniques.sparsegpt import SparseGPT

AUTO = "auto"
MOVEMENT = "movement"
SMALLEST, STEPS = 0.1, 22  # where `max_drop` alone ends, and in how many steps: a tenth of what is left each


@dataclass(frozen=True)
class Wish:
    """What was asked for: the shares that are left after each step (empty: not asked for), and how weights become zero."""

    macs: Sequence[float]
    only: Sequence[str]
    weights: Sequence[float]
    branches: Sequence[int]
    thin: bool  # branches go where that is better than only narrowing
    sparse: Callable[[float], Technique]
    pattern: NofM | None  # where it fixes the share itself
    rank: Rank
    multiple: int  # 0: to be measured
    allowed: float | None
    needs: frozenset[str]  # of what is measured on calibration data
    moved: bool  # whether what training does to weights decides
    sensitivity: Sensitivity | None  # of the same model

    @property
    def predicts(self) -> bool:
        """Whether predicted damage says how much goes where."""
        return (bool(self.macs) and self.rank is widths.curves) or (bool(self.weights) and self.pattern is None)

    def only_step(self, step: int, grown: float, gone: int) -> Wish:
        """One step's wish, where `gone` branches went before and what is left counts `grown` times as much of the whole."""
        macs, weights = (list(each[step : step + 1] or each[-1:]) for each in (self.macs, self.weights))
        branches = [n - gone for n in self.branches[step : step + 1] or self.branches[-1:]]
        return replace(self, macs=[min(1.0, share * grown) for share in macs], weights=weights, branches=branches)


def wish_of(
    macs: float | str | None,
    weights: float | str | None,
    only: Sequence[str],
    branches: int | str,
    pattern: str,
    criterion: str,
    schedule: str,
    steps: int,
    multiple: int | str,
    max_drop: float | str | None,
    sensitivity: Sensitivity | str | Path | None,
) -> Wish:
    """What the words mean together. Raises `InputError` for what cannot be meant, or contradicts."""
    allowed = None if max_drop is None else amounts.drop(max_drop)
    left, density = (None if given is None else amounts.share(given) for given in (macs, weights))
    if schedule not in SCHEDULES:
        raise InputError(f"There is no schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    if unknown := sorted(set(only) - set(KINDS)):
        raise InputError(f"There is no kind of prunable group {unknown[0]!r}; choose one of {', '.join(KINDS)}.")
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1.")
    step = 0 if multiple == AUTO else int(multiple) if str(multiple).isdecimal() else -1
    if step < 0 or multiple in (0, "0"):
        raise InputError(f"multiple is {multiple!r}; write a number from 1 up, or {AUTO}.")
    places = pattern_called(pattern)
    scored = None if criterion == "best" else criterion_called(criterion)
    one = places(1.0)
    fixed = one if isinstance(one, NofM) else None
    if fixed is not None:
        if density is not None:
            raise InputError(f"The pattern {pattern} itself determines how many weights stay; leave out weights.")
        density = fixed.n / fixed.m
    thin = branches == AUTO
    count = 0 if thin else int(branches) if str(branches).isdecimal() else -1
    if count < 0 or (thin and left is None):
        raise InputError(
            f"branches is {branches!r}{' and macs is not given' if thin else ''}; write a number from 0 up, or {AUTO} together "
            "with macs."
        )
    if left is None and density is None and not count:
        if allowed is None:
            raise InputError(
                "It is not given how much to prune; give macs, weights, branches, a pattern such as 2:4, or max_drop."
            )
        left, schedule, steps = SMALLEST, geometric.__name__, max(steps, STEPS)
    if only and left is None:
        raise InputError(f"only is {', '.join(only)}, but it is not given how much to prune; give macs.")

    if sensitivity is not None and (left is None or scored is not None):
        raise InputError(
            "sensitivity corrects the predicted loss of channels; it needs macs, or max_drop alone, and criterion best."
        )

    def sparse(share: float) -> Technique:
        where = places(share)
        return SparseGPT(where) if scored is None else Sparse(where, scored)

    shares = SCHEDULES[schedule]
    return Wish(
        macs=[] if left is None else shares(left, steps),
        only=only or KINDS,
        weights=[] if density is None else [density] * steps if fixed else shares(density, steps),
        branches=range(1, count + 1) if allowed is not None and left is None else [count] if count else [],
        thin=thin,
        sparse=sparse,
        pattern=fixed,
        rank=widths.curves if scored is None else partial(widths.ranked, criterion=scored),
        multiple=step,
        allowed=allowed,
        needs=NEEDS if scored is None else NEEDS | scored.needs & MEASURED,
        moved=scored is not None and MOVEMENT in scored.needs,
        sensitivity=None if sensitivity is None else Sensitivity.of(sensitivity),
    )
