"""Which of the raced files to take: of what the clock cannot tell apart, the simplest.

Nothing lossy is worth it that is not measurably faster than every lossless file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.measuring.clock import Race

EVEN = 1.05  # times the fastest, and no race can tell: as fast
NOISE = 0.05  # of a file against itself, from which on a race is repeated
LOSSLESS = 1  # and below, on the scale of simplicity


def noise(race: Race) -> float:
    """How far apart a file was from itself, at the far end of the interval: 0.05 is 5 %. 0 where nothing ran twice."""
    seen = race.noise()
    return 0.0 if seen is None else max(seen.high, 1 / seen.low) - 1


def preferred(
    race: Race, names: Sequence[str], simplicity: Callable[[str], int], cost: Callable[[str], tuple[float, ...]]
) -> list[str]:
    """The names in the order in which to take them, the best first.

    First those that are not measurably slower than the fastest, the simplest of them (least `simplicity`) before others, and
    of equally simple ones that are as good as equally fast the one of least `cost`; then the rest by time.
    """
    fastest = sorted(names, key=race.median)
    lossless = [n for n in fastest if simplicity(n) <= LOSSLESS]
    worth = [n for n in fastest if n in lossless or all(race.verdict(n, other) == "faster" for other in lossless)]
    tied = [n for n in worth if n == fastest[0] or race.verdict(n, fastest[0]) != "slower"] or worth[:1]
    simplest = [n for n in tied if simplicity(n) == min(map(simplicity, tied))]
    even = [n for n in simplest if n == simplest[0] or _even(race, n, simplest[0])]
    rest = sorted((n for n in tied if n not in even), key=lambda n: (simplicity(n), race.median(n)))
    return [*sorted(even, key=cost), *rest, *(n for n in worth if n not in tied)]


def _even(race: Race, a: str, b: str) -> bool:
    """Whether two files are as good as equally fast."""
    return race.ratio(a, b).value <= EVEN and race.verdict(a, b) == "no difference"
