"""The process that one contender lives in: `python -m tersor.measuring.child PARENT`. See `clock`.

Protocol, one JSON object a line. In: {"make", "arguments", "cores"} and {"turn", "warm"} once, then {"calls"} for each
turn. Out: {"loaded"}, {"ready": calls for one turn}, then {"seconds": mean of one call, "memory": peak bytes} a turn; or
{"error", "trace"}.
Imports nothing but the standard library, so that the contender's process holds the contender alone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import resource
import signal
import statistics
import sys
import traceback
from collections.abc import Callable
from time import perf_counter
from typing import Any, TextIO

_REWARM_BELOW = 0.05
"""Seconds of one call under which a turn begins with calls that do not count, a quarter as many as do: others have used the
caches since, and who calls again and again never sees that."""

_PR_SET_PDEATHSIG = 1


def main(parent: int) -> None:
    """Serve turns until stdin ends."""
    _die_with(parent)
    orders, answers = _claim_streams()
    try:
        order = json.loads(orders.readline())
        if order["cores"]:
            os.sched_setaffinity(0, order["cores"])
        call = _make(order["make"])(**order["arguments"])
        call()
        _answer(answers, {"loaded": True})
        order = json.loads(orders.readline())
        calls, expected = _warm_up(call, order["warm"], order["turn"])
        gc.collect()
        gc.freeze()
        gc.disable()
        _answer(answers, {"ready": calls})
        for line in iter(orders.readline, ""):
            seconds = _turn(call, json.loads(line)["calls"], expected)
            _answer(answers, {"seconds": seconds, "memory": peak_bytes()})
    except (Exception, SystemExit) as cause:
        _answer(answers, {"error": f"{type(cause).__name__}: {cause}", "trace": traceback.format_exc()[-4000:]})


def peak_bytes() -> int:
    """The most memory that this process has held.

    Linux is asked for the mark of this program alone: the general count begins with what the parent held at the fork.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            marks = [line for line in lines if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0].split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _make(path: str) -> Callable[..., Callable[[], Any]]:
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[return-value]


def _warm_up(call: Callable[[], Any], seconds: float, turn: float) -> tuple[int, float]:
    """(calls that fill a turn, seconds of one call), after at least 3 calls and `seconds` of them."""
    times: list[float] = []
    start = perf_counter()
    while len(times) < 3 or perf_counter() - start < seconds:
        before = perf_counter()
        call()
        times.append(perf_counter() - before)
    one = statistics.median(times[len(times) // 2 :])
    return max(1, math.ceil(turn / max(one, 1e-7))), one


def _turn(call: Callable[[], Any], calls: int, expected: float) -> float:
    if expected < _REWARM_BELOW:
        for _ in range(-(-calls // 4)):
            call()
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls


def _claim_streams() -> tuple[TextIO, TextIO]:
    """The protocol's own streams; whatever else is printed in this process goes to stderr, and stdin is empty."""
    orders = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def _answer(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when `parent` ends, also while it is stopped (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
