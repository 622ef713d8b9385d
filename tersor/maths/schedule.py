"""How much is left after each of several steps from everything to a share.

A schedule takes the `share` that is left in the end and the number of `steps`, and gives what is left after each step:
descending, the last one exactly `share`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

Schedule = Callable[[float, int], list[float]]


def geometric(share: float, steps: int) -> list[float]:
    """The same ratio in every step."""
    return _schedule(share, steps, lambda done: share**done)


def linear(share: float, steps: int) -> list[float]:
    """The same amount in every step."""
    return _schedule(share, steps, lambda done: 1 - done * (1 - share))


def cosine(share: float, steps: int) -> list[float]:
    """Slow, fast, slow: half a period of a cosine."""
    return _schedule(share, steps, lambda done: share + (1 - share) * (1 + cos(pi * done)) / 2)


def cubic(share: float, steps: int) -> list[float]:
    """Fast while much is left: `s + (1 - s)(1 - t)^3`. Source: Zhu and Gupta 2017 (arXiv:1710.01878)."""
    return _schedule(share, steps, lambda done: share + (1 - share) * (1 - done) ** 3)


SCHEDULES: dict[str, Schedule] = {each.__name__: each for each in (geometric, linear, cosine, cubic)}


def _schedule(share: float, steps: int, left: Callable[[float], float]) -> list[float]:
    return [left(step / steps) for step in range(1, steps)] + [share]
