"""What was not touched, as a table: a line for each reason."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.cli.console import table
from tersor.left_alone import LeftAlone
from tersor.units import size

_NAMES = 4  # that are spelled out


def show_left_alone(found: Sequence[LeftAlone]) -> None:
    """Names, bytes and the reason; nothing where nothing was left alone."""
    by_reason: dict[str, list[LeftAlone]] = {}
    for each in found:
        by_reason.setdefault(each.reason, []).append(each)
    rows = [(_named(some), size(_nbytes(some)), reason) for reason, some in by_reason.items()]
    if rows:
        table(f"Left alone: {size(_nbytes(found))}", ("what", "size", "why"), rows, numbers=(1,))


def _named(some: Sequence[LeftAlone]) -> str:
    names = ", ".join(each.name for each in some[:_NAMES])
    return names + (f" and {len(some) - _NAMES} more" if len(some) > _NAMES else "")


def _nbytes(some: Sequence[LeftAlone]) -> int:
    return sum(each.nbytes for each in some)
