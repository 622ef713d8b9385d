"""Numbers as people read them. None becomes ""."""

from __future__ import annotations

import math


def ms(seconds: float | None) -> str:
    """A time in milliseconds, from one second on in seconds."""
    return "" if seconds is None else f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def duration(seconds: float) -> str:
    """A time of seconds to days, in the two units that matter, the second where there is any of it."""
    whole = round(seconds)
    for unit, name, part, its in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {its}" if rest else "")
    return f"{whole} s" if seconds >= 1 or not seconds else f"{seconds:.1g} s"


def spread(low: float, value: float, high: float) -> str:
    """A time with its interval, in the unit of the value."""
    scale = 1.0 if value >= 1 else 1e3
    return f"{ms(value)} [{scale * low:.3g}, {scale * high:.3g}]"


def size(nbytes: float | None) -> str:
    """Bytes with a decimal unit."""
    return "" if nbytes is None else _scaled(nbytes, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")), " B")


def count(n: float | None) -> str:
    """A count with k, M or G."""
    return "" if n is None else _scaled(n, ((1e9, " G"), (1e6, " M"), (1e3, " k")), "")


def several(number: int, thing: str, things: str = "") -> str:
    """A number of things, such as "1 layer" and "2 layers"; `things`: the plural where it is not `thing` and s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def points(share: float | None) -> str:
    """A share as a percentage."""
    return "" if share is None else f"{100 * share:.2f} %"


def signed(value: float) -> str:
    """A change with two digits and its sign; nothing is never negative."""
    return f"{round(value, 2) + 0.0:+.2f}"


def number(value: float | None) -> str:
    """Four digits after the point; of what these would not show, three that do."""
    return "" if value is None else f"{value:.4f}" if 1e-3 <= abs(value) <= 1 else f"{value + 0.0:.5g}"


def quantity(value: float | None, unit: str) -> str:
    """A value in the unit of a `Compared`."""
    if value is None:
        return ""
    plain = number(value) + (f" {unit}" if unit else "")
    return {"seconds": ms, "bytes": size, "share": points}.get(unit, lambda _: plain)(value)


def _scaled(value: float, units: tuple[tuple[float, str], ...], rest: str) -> str:
    for scale, name in units:
        if value >= 0.9995 * scale:
            digits = max(0, 2 - math.floor(math.log10(max(1.0, value / scale)) + 1e-9))
            return f"{value / scale:.{digits}f}{name}"
    return f"{value:.0f}{rest}"
