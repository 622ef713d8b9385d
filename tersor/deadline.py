"""The time that a user allows, looked at between steps.

    with until(Deadline.after(600)):
        for step in work:
            check()          # raises `TimeUp` where nothing is left
            step()

A deadline holds for all that is called inside, so that no function on the way hands it on (the cancel scopes of trio). Scopes
nest: of several, what is left is the least. Only the thread that opened the scope sees it.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from types import FrameType

_AGAIN = 1.0
"""Seconds after which `TimeUp` is raised again, where somebody's code catches everything."""
_IMPORTS = 20
"""Times that it is not raised yet because an import is under way: half of a module would stay in this process."""
_SOONEST, _FARTHEST = 1e-3, 1e6
"""Seconds that an alarm is set for at least and at most."""


class TimeUp(BaseException):
    """The time is up. Caught by whoever can deliver what there is by then, and never shown to a user.

    No `Exception`: what contains the failure of one candidate, or of a user's function, must not contain this.
    """


def _nothing() -> float:
    return 0.0


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic()`, less the seconds that `reserve` says are needed afterwards (asked each time)."""

    begin: float = 0.0
    end: float = math.inf
    reserve: Callable[[], float] = _nothing

    @staticmethod
    def after(seconds: float) -> Deadline:
        """So many seconds from now."""
        now = monotonic()
        return Deadline(now, now + seconds)

    @property
    def limited(self) -> bool:
        """Whether there is any."""
        return self.end < math.inf

    def left(self, now: float) -> float:
        """Seconds; below zero afterwards."""
        return self.end - now - self.reserve()

    @property
    def spent(self) -> float:
        """Seconds since it was set."""
        return monotonic() - self.begin

    @property
    def whole(self) -> float:
        """Seconds that it allowed."""
        return self.end - self.begin

    def sooner(self, reserve: Callable[[], float]) -> Deadline:
        """The deadline of what must leave as many seconds as `reserve` says."""
        return Deadline(self.begin, self.end, lambda: self.reserve() + reserve())


_open: ContextVar[tuple[Deadline, ...]] = ContextVar("deadlines", default=())


@contextmanager
def until(deadline: Deadline) -> Iterator[None]:
    """Make `check` raise after the deadline, meanwhile."""
    token = _open.set((*_open.get(), deadline))
    try:
        yield
    finally:
        _open.reset(token)


def left() -> float:
    """Seconds that are left here; infinite where nothing limits them."""
    now = monotonic()
    return min((deadline.left(now) for deadline in _open.get()), default=math.inf)


def check() -> None:
    """Raises `TimeUp` where nothing is left."""
    if left() <= 0:
        raise TimeUp


@contextmanager
def enforced() -> Iterator[None]:
    """Raise `TimeUp` when nothing is left, wherever Python code is by then: for functions of users, for exporters, and for all
    that never calls `check`. One call into compiled code is finished first, and an import (for `_IMPORTS` seconds).

    Only the main thread can be interrupted, and only where nobody else has set an alarm; elsewhere this does nothing. What is
    called inside must not mind where it ends: no half of a file, no process that nobody ends.
    """
    seconds = left()
    if seconds == math.inf or not _free_alarm():
        yield
        return
    check()
    armed, spared = True, 0

    def over(number: int, frame: FrameType | None) -> None:
        nonlocal spared
        if armed and left() <= 0:
            if spared < _IMPORTS and _importing(frame):
                spared += 1
                return
            raise TimeUp

    before = signal.signal(signal.SIGALRM, over)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, min(max(seconds, _SOONEST), _FARTHEST), _AGAIN)
            yield
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # an alarm that is on its way still comes, and the system's answer to one that nobody handles is to end the process
        signal.signal(signal.SIGALRM, _late if before is signal.SIG_DFL else before)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_find_and_load" and code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _late(number: int, frame: object) -> None:
    """Of an alarm that comes when nothing is armed any more."""


def _free_alarm() -> bool:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) is not None
