"""Amounts as users write them: `0.5%` or `0.005`, `2.1x`, `10m`, `2GB`."""

from __future__ import annotations

import math
import re

from tersor.deadline import Deadline
from tersor.errors import InputError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def drop(text: str | float) -> float:
    """A drop as a fraction: `0.5%` and `0.005` are 0.005. Raises `InputError` for what is no number in [0, 1)."""
    shown = str(text).strip()
    number = _number(shown.removesuffix("%").rstrip())
    if number is None:
        raise InputError(f"The allowed drop '{shown}' is no number; write 0.5% or 0.005.")
    value = number / 100 if shown.endswith("%") else number
    if not 0 <= value < 1:
        hint = f" (did you mean {shown}%?)" if 1 <= value < 100 and not shown.endswith("%") else ""
        raise InputError(f"The allowed drop '{shown}' lies outside 0% to 100%{hint}; write 0.5% or 0.005.")
    return value


def share(text: str | float) -> float:
    """What is left, as a fraction: `2x` less, `50%` and `0.5` are 0.5. Raises `InputError` for what is no share in (0, 1]."""
    shown = str(text).strip()
    number = _number(shown.rstrip("x%").rstrip())
    if number is None or number == 0:
        raise InputError(f"The share '{shown}' is no number above zero; write 2x (less), 50% or 0.5 (left).")
    value = 1 / number if shown.endswith("x") else number / 100 if shown.endswith("%") else number
    if not 0 < value <= 1:
        hint = f" (did you mean {shown}x?)" if value > 1 and shown[-1] not in "x%" else ""
        raise InputError(f"The share '{shown}' lies outside 0% to 100%{hint}; write 2x (less), 50% or 0.5 (left).")
    return value


def seconds(text: str | float) -> float:
    """Seconds of a duration: `90`, `90s`, `10m`, `1.5h`, `1h30m`. Raises `InputError` for what is none above zero."""
    shown = str(text).strip()
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", shown)
    value = 0.0
    for amount, unit in parts:
        number = _number(amount)
        if number is None or unit not in _UNITS:
            raise InputError(f"The time '{shown}' is no duration; write 90s, 10m or 1.5h.")
        value += number * _UNITS[unit]
    if value <= 0 or re.sub(r"[\d.]+\s*[a-z]*\s*", "", shown):
        raise InputError(f"The time '{shown}' is no duration above zero; write 90s, 10m or 1.5h.")
    return value


def deadline(time_limit: float | str | Deadline | None) -> Deadline:
    """What a user's words allow, from now on. Raises `InputError`."""
    if time_limit is None:
        return Deadline()
    return time_limit if isinstance(time_limit, Deadline) else Deadline.after(seconds(time_limit))


def nbytes(text: str | int) -> int:
    """Bytes of memory: `2GB`, `1.5 GiB`, `800MB`. Raises `InputError` for what is no size above zero."""
    shown = str(text).strip()
    parts = re.fullmatch(r"([\d.]+)\s*([a-zA-Z]*)", shown)
    number = None if parts is None else _number(parts[1])
    if parts is None or number is None or number <= 0 or parts[2].lower() not in _BYTES:
        raise InputError(f"The memory limit '{shown}' is no size above zero; write 2GB or 800MB.")
    return int(number * _BYTES[parts[2].lower()])


def training(text: str | float) -> tuple[float | None, float | None]:
    """How long to train, as (epochs, seconds), one of them None: `2epochs`, `0.5 epochs`, `10m`. Raises `InputError`."""
    shown = str(text).strip()
    epochs = re.fullmatch(r"([\d.]+)\s*epochs?", shown)
    if epochs is None:
        try:
            return None, seconds(shown)
        except InputError as cause:
            raise InputError(
                f"The training length '{shown}' cannot be read; write 2epochs, 90s, 10m or 1.5h."
            ) from cause
    number = _number(epochs[1])
    if number is None or number <= 0:
        raise InputError(f"The training length '{shown}' cannot be read; write 2epochs, 90s, 10m or 1.5h.")
    return number, None


def seed(value: int) -> int:
    """A seed that every generator takes. Raises `InputError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(f"The seed is {value!r:.40}; write a whole number from 0 to {2**32 - 1}.")
    return value


def finite(**values: float | None) -> None:
    """Raise `InputError` naming the first of these settings that is NaN or infinite; None says nothing."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"The setting {name} is {value}; write a finite number.")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
