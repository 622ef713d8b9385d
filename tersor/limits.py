"""What a time limit left undone, and how long it would have taken, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic

from tersor.deadline import Deadline, TimeUp, enforced, until
from tersor.errors import BudgetError
from tersor.units import duration

_MARGIN = 1.5  # times what is foreseen: a first estimate from a part


class Heard:
    """A progress that passes on what it hears, and remembers the last of it.

    steps: of how many steps a command consists; 0 where it does not say. `enter` begins the next one, with the seconds that it
    and what follows take at most, where that is known. `best` says what would be delivered now.
    """

    def __init__(self, progress: Callable[[str, int, int], None], steps: int = 0):
        self._progress = progress
        self.stage, self._done, self._total = "starting", 0, 0
        self._begin = monotonic()
        self._steps, self._step, self._more = steps, min(1, steps), ""
        self.best: Callable[[], str] = str

    def enter(self, more: float | None = None) -> None:
        """Begin the next step."""
        self._step = min(self._step + 1, self._steps)
        self._more = "" if more is None else f", at most about {duration(_generous(more))} more"

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage, self._begin = stage, monotonic()
        self._done, self._total = done, total
        self._progress(self._said(stage), done, total)

    def _said(self, stage: str) -> str:
        step = f"step {self._step} of {self._steps}{self._more}: " if self._steps else ""
        best = self.best()
        return f"{step}{stage}{f' (best so far: {best})' if best else ''}"

    @property
    def spent(self) -> float:
        """Seconds in this stage so far."""
        return monotonic() - self._begin

    @property
    def rest(self) -> float:
        """Seconds that this stage still takes at its pace so far; as many again where it does not say how far it is."""
        return self.spent * (self._total - self._done) / self._done if self._total and self._done else self.spent

    def __str__(self) -> str:
        far = f" ({self._done} of {self._total})" if self._total else ""
        return f"{self.stage}{far}"


@contextmanager
def limited(limit: Deadline, heard: Heard, alone: bool = True) -> Iterator[None]:
    """End what a command does meanwhile when the time is up. alone: whether this process may end without others that wait for
    it; else it ends only where it looks at the clock.

    Raises `BudgetError`.
    """
    try:
        with until(limit), enforced() if alone else nullcontext():
            yield
    except TimeUp:
        foreseen = _MARGIN * (limit.spent + heard.rest)
        raise BudgetError(
            f"The time limit of {duration(limit.whole)} expired at this stage: {heard}. Nothing was written. Allow "
            f"{duration(_generous(foreseen))} or more: the same command continues with what is in the cache."
        ) from None


def stopped_early(limit: Deadline, heard: Heard, kept: str) -> str:
    """What to warn of where a command delivers what was `kept` when its time was up."""
    return (
        f"The time limit of {duration(limit.whole)} expired at this stage: {heard}; the result is {kept}. The same command "
        "with a longer limit continues from here."
    )


def too_short(limit: Deadline, heard: Heard, afterwards: float | None) -> BudgetError:
    """What to raise where nothing could be delivered. afterwards: seconds from the end of this stage to a delivered artifact;
    None: another two of this stage, one to judge and one to report."""
    rest = heard.rest
    foreseen = limit.spent + rest + (2 * (heard.spent + rest) if afterwards is None else afterwards)
    return BudgetError(
        f"The time limit of {duration(limit.whole)} expired before any candidate was verified, at this stage: {heard}. Nothing "
        f"was written. Allow {duration(_generous(_MARGIN * foreseen))} or more, or evaluate on fewer items (--eval-data)."
    )


def cut_short(limit: Deadline, heard: Heard, left_out: str) -> str:
    """What to note where something was delivered."""
    return (
        f"The time limit of {duration(limit.whole)} ended the search at this stage: {heard}. Left out or cut short: "
        f"{left_out}. With more time a faster file may be found; run the same command with a longer limit to continue."
    )


def _generous(seconds: float) -> float:
    """The next round number."""
    unit = 10 if seconds < 120 else 60
    return unit * math.ceil(seconds / unit)
