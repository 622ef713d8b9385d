"""What the clock's tests time; imported by the clock's child processes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable


def adder(n: int) -> Callable[[], object]:
    return lambda: sum(range(n))


def alone(path: str, n: int) -> Callable[[], object]:
    """Fails where another one lives at the same time."""
    file = open(path, "a")  # noqa: SIM115 - for as long as the process lives
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lambda: (file, sum(range(n)))


def noisy() -> Callable[[], object]:
    """Prints through Python, through the descriptor, from a subprocess and at every call."""
    sys.stdout.write("not JSON\n")
    os.write(1, b"not JSON either\n")
    subprocess.run(["echo", "nor this"], check=True)
    return lambda: os.write(1, b"and this\n")


def raising() -> Callable[[], object]:
    raise ValueError("the weights are not here")


def crashing() -> Callable[[], object]:
    sys.stderr.write("about to touch address zero\n")
    ctypes.string_at(0)
    return raising


def leaving() -> Callable[[], object]:
    sys.exit("left on its own account")


def dying_later(calls: int) -> Callable[[], object]:
    left = [calls]

    def call() -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(7)
        time.sleep(0.005)

    return call


def hanging() -> Callable[[], object]:
    time.sleep(60)
    return raising


def writing_pid(path: str) -> Callable[[], object]:
    """Writes its process id and that of a worker which it starts."""
    worker = subprocess.Popen(["sleep", "60"])
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {worker.pid}")
    return lambda: None


def counting(path: str) -> Callable[[], object]:
    """Burns time in a second thread for ever; appends the times at which its own thread was called."""
    import threading

    def burn() -> None:
        while True:
            with open(path, "a", encoding="ascii") as file:
                file.write(f"{time.monotonic()}\n")
            time.sleep(0.001)

    threading.Thread(target=burn, daemon=True).start()
    return lambda: time.sleep(0.002)


def threads_of_openmp(wanted: str) -> Callable[[], object]:
    seen = os.environ.get("OMP_NUM_THREADS", "none")
    if seen != wanted:
        raise ValueError(f"OMP_NUM_THREADS is {seen}")
    return lambda: None


def hungry(nbytes: int) -> Callable[[], object]:
    """Takes memory, a little more every time, and keeps it."""
    taken = []
    while sum(map(len, taken)) < nbytes:
        taken.append(b"x" * (1 << 24))
        time.sleep(0.02)
    return lambda: len(taken)
