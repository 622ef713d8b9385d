"""Which line of the user's own file something comes from, for sentences that refuse it.

Lines of graph nodes are known from the trace. What the graph does not show (a branch of Python, a counter, numpy's random
numbers) is found by running the forward pass once more, line by line; that is slow, and done for refusals only.
"""

from __future__ import annotations

import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

_LIBRARIES = tuple(
    str(Path(place).resolve())
    for place in (Path(torch.__file__).parent, Path(np.__file__).parent, Path(__file__).parents[1])
)
_STANDARD = str(Path(sysconfig.get_path("stdlib")).resolve())
_EVENTS = 20_000  # lines of one forward pass; a longer one is compared as far as that


def told(filename: str, line: int | None, function: str) -> str:
    """A place in a file, as Python writes it."""
    return f'File "{filename}", line {line}, in {function}'


def of_node(node: fx.Node) -> str:
    """The user's line that made a graph node, the innermost one; empty where it is not known."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines()]
    users = [line for line in lines if line.startswith('File "') and is_users(line.split('"')[1])]
    return users[-1] if users else ""


def is_users(filename: str) -> bool:
    """Whether a file is neither torch, numpy, Python's own nor ours."""
    if filename.startswith("<"):
        return False
    standard = filename.startswith(_STANDARD) and "site-packages" not in filename
    return not standard and not filename.startswith(_LIBRARIES)


def where_moved(call: Callable[[], Any], probe: Callable[[], Any]) -> str:
    """The first line of the user's in `call` after which `probe` gives another value than before; empty where none does."""
    found: list[str] = []
    known = [probe()]

    def after(frame: FrameType, line: str, event: str, arg: Any) -> None:
        if not found and probe() != known[0]:
            found.append(line)

    _followed(call, after)
    return found[0] if found else ""


def parting(first: Callable[[], Any], second: Callable[[], Any], same: Callable[[Any, Any], bool]) -> str:
    """The first line of the user's at which two calls go other ways, or after which a value is not `same`; empty where none
    is found."""
    for a, b in zip(_recorded(first), _recorded(second), strict=False):
        if (a.place, a.event) != (b.place, b.event):
            return a.line
        if any(name in b.values and not same(value, b.values[name]) for name, value in a.values.items()):
            return a.line
    return ""


def chance() -> tuple[Any, ...]:
    """The state of every global generator of random numbers."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, bytes(np.asarray(keys)), *rest), bytes(torch.get_rng_state().numpy())


@dataclass(frozen=True)
class _Step:
    """What a line left behind: `line` wrote `values`, before control came to `place`."""

    place: tuple[str, int, str]
    event: str
    line: str
    values: dict[str, Any]


def _recorded(call: Callable[[], Any]) -> list[_Step]:
    steps: list[_Step] = []
    seen: dict[FrameType, dict[str, tuple[Any, int]]] = {}

    def after(frame: FrameType, line: str, event: str, arg: Any) -> None:
        if len(steps) >= _EVENTS:
            return
        known = seen.setdefault(frame, {})
        fresh = dict(_fresh(frame.f_locals, known))
        if event == "return":
            fresh |= dict(_parts("return value", arg))
            seen.pop(frame, None)
        place = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        at = told(*place) if event == "return" else line
        steps.append(_Step(place, event, at, fresh))

    _followed(call, after)
    return steps


def _fresh(local: dict[str, Any], known: dict[str, tuple[Any, int]]) -> Iterator[tuple[str, Any]]:
    """Copies of what a frame's variables hold that they did not hold at the line before."""
    for name, value in local.items():
        for part, each in _parts(name, value):
            version = each._version if isinstance(each, Tensor) and not each.is_inference() else 0
            if part not in known or known[part][0] is not each or known[part][1] != version:
                known[part] = (each, version)
                yield part, each.detach().clone() if isinstance(each, Tensor) else each


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool | float | Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for index, each in enumerate(value[:16]):
            if isinstance(each, bool | float | Tensor):
                yield f"{name}[{index}]", each


def _followed(call: Callable[[], Any], after: Callable[[FrameType, str, str, Any], None]) -> None:
    """Run `call`; `after(frame, line, event, arg)` hears of each line of the user's that has just been run.

    `event` is "line" where control comes to the frame's next line, and "return". The first line of a function hears of its
    caller's line, which gave it its arguments.
    """
    current: dict[FrameType, str] = {}

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        if event not in ("line", "return"):
            return local
        line = current.get(frame) or _caller(frame, current)
        after(frame, line, event, arg)
        current[frame] = told(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        if event == "return":
            current.pop(frame, None)
        return local

    def entered(frame: FrameType, event: str, arg: Any) -> Any:
        return local if is_users(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        call()
    except Exception:  # what was run until then is what is looked at
        pass
    finally:
        sys.settrace(before)


def _caller(frame: FrameType, current: dict[FrameType, str]) -> str:
    outer = frame.f_back
    while outer is not None and outer not in current:
        outer = outer.f_back
    return current[outer] if outer is not None else told(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
