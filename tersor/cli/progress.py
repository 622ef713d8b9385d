"""What a command says on stderr while it works: the stage, how far along it is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tersor.units import duration

_EVERY = 30.0  # seconds between two lines of one stage


class Stages:
    """A `Progress` for the pipeline: a bar with the time left on a terminal; elsewhere one line a stage, and one every half a
    minute of a stage that takes longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._stage = clock, ""
        self._said = self._begin = 0.0
        self._begun = self._done = 0
        self._live = None
        if sys.stderr.isatty():
            from tersor.cli.bar import bar

            self._live = bar()
            self._task = self._live.add_task("starting", total=None)

    def __enter__(self) -> Stages:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        new = stage != self._stage or done < self._done
        self._stage, self._done = stage, done
        if self._live is not None:
            if new:  # with a clock of its own
                self._live.remove_task(self._task)
                self._task = self._live.add_task(stage, total=total or None, completed=done)
            else:
                self._live.update(self._task, completed=done, total=total or None)
            return
        now = self._clock()
        if new:
            self._begin = self._said = now
            self._begun = done
            print(stage, file=sys.stderr, flush=True)
        elif now - self._said >= _EVERY:
            self._said = now
            print(f"{stage} {self._far(now, done, total)}", file=sys.stderr, flush=True)

    def _far(self, now: float, done: int, total: int) -> str:
        """How far it is, and how long the rest takes at the pace so far; else the time so far."""
        if not total:
            return f"({duration(now - self._begin)} so far)"
        if done <= self._begun:
            return f"{done}/{total}"
        left = (now - self._begin) / (done - self._begun) * (total - done)
        return f"{done}/{total}, {duration(left)} left"
