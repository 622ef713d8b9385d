"""Files in other people's formats. Whatever their parsers raise becomes one error that names the file.

Parsers raise what their authors thought of and much that they did not: a `RecursionError` for brackets, an `AttributeError`
for a list in place of a table, a `RuntimeError` for a password. A list of what to catch is never complete, so that everything
that foreign code raises is caught here, at the one place where it is called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersor.errors import TersorError

LARGEST = 64 << 20
"""Bytes of a text that is parsed at most."""


@contextmanager
def reading(what: str, error: type[TersorError], advice: str) -> Iterator[None]:
    """What is raised meanwhile becomes `error`: `what` cannot be read, why, and `advice`. Tersor's own errors pass."""
    try:
        yield
    except TersorError:
        raise
    except Exception as cause:  # see above: any list would be too short
        raise error(f"{what} cannot be read ({said(cause)}); {advice}.") from cause


def said(cause: BaseException) -> str:
    """What an exception says, in one line, not too long."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(cause).split()).rstrip(".")
    return (text if len(text) <= 200 else f"{text[:197]}...") or type(cause).__name__


def text(path: Path, what: str, error: type[TersorError], advice: str) -> str:
    """The UTF-8 text in the file `path`, without a byte order mark. Raises `error`."""
    if not path.exists():
        raise error(f"There is no {what} '{path}'; {advice}.")
    if not path.is_file():
        raise error(f"The {what} '{path}' is {'a folder' if path.is_dir() else 'no plain file'}; {advice}.")
    with reading(f"The {what} '{path}'", error, advice):
        size = path.stat().st_size
        if size > LARGEST:
            raise error(f"The {what} '{path}' has {size / 1e6:.0f} MB, too many for text of its kind; {advice}.")
        return path.read_text(encoding="utf-8-sig")


def json_in(path: Path, what: str, error: type[TersorError], advice: str) -> Any:
    """The JSON in the file `path`. Raises `error`."""
    content = text(path, what, error, advice)
    with reading(f"The {what} '{path}'", error, advice):
        return json.loads(content)


def strict_json(data: bytes | str) -> Any:
    """JSON in which no name occurs twice and every number is finite, so that all readers see the same. Raises `ValueError`,
    `RecursionError`."""
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
