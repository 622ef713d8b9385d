"""Processes that are killed at a chosen system call or moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_EVENTS = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "open"})


def killed_before_event(number: int, folder: Path, action: Callable[[], None]) -> bool:
    """Run `action` in a forked child that is killed just before it touches `folder` for the `number`-th time.

    False where the action ended before.
    """
    seen = [0]

    def watch(event: str, arguments: tuple) -> None:
        if event in _EVENTS and _concerns(str(arguments[0]), folder):
            seen[0] += 1
            if seen[0] > number:
                os.kill(os.getpid(), signal.SIGKILL)

    return _killed(_forked(action, lambda: sys.addaudithook(watch)))


def _concerns(path: str, folder: Path) -> bool:
    return path.startswith(str(folder)) or not path.startswith("/")  # a relative name is what rmtree works with


def every_event(folder: Path, action: Callable[[], None]) -> Iterator[int]:
    """Kill `action` before its first event, its second, ... until it ends unharmed; gives the number after each."""
    number = 0
    while killed_before_event(number, folder, action):
        yield number
        number += 1


def killed_after(seconds: float, action: Callable[[], None]) -> bool:
    """Run `action` in a forked child that is killed after `seconds`. False where the action ended before."""
    child = _forked(action, lambda: None)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return _killed(child)


def _forked(action: Callable[[], None], prepare: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        prepare()
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


def _killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("the child raised")
    return False
