"""A child process that takes turns, seen from the parent. Stopped whenever it is not its turn."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tersor import deadline
from tersor.errors import KILLED, TargetError, reason
from tersor.memory import Room, free, held, written

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TBB_NUM_THREADS",
)

_LOOK = 0.2
"""Seconds between two looks at how much memory the processes hold."""
_RESERVE = 64 << 20
"""Bytes that must stay free, so that it is not the system that ends a process, and perhaps this one."""
_NOT_STARTED = "could not be started"
_SETTLE = 0.02
"""Seconds left to a finished turn's spinning threads where a process cannot be stopped."""


class Watch:
    """Ends the process that holds most where all of them, with this one, hold more than `room` has."""

    def __init__(self, room: Room):
        self._room = room
        self._processes: list[Process] = []

    def add(self, process: Process) -> None:
        self._processes.append(process)

    def look(self) -> None:
        """Called while one of them is waited for."""
        together = {process: process.held for process in self._processes}
        left = free() - _RESERVE
        if self._room.limit is not None:
            left = min(left, self._room.limit - held() - sum(together.values()))
        largest = max(together, key=lambda process: together[process], default=None)
        if left < 0 and largest is not None and together[largest]:
            largest.end_for_memory(max(0, together[largest] + left))


class Process:
    """One contender's process. `load`, `loaded`, `warm_up`, then `turn` as often as wanted, then `end`, whatever happened.

    Raises `TargetError` where it cannot be started.
    """

    def __init__(self, name: str, threads: int, timeout: float, watch: Watch | None = None):
        self.name = name
        self.memory = 0
        self._timeout, self._watch = timeout, watch
        self._over = ""
        self._calls = 1
        self._rest = b""
        self._ended = False
        command = [sys.executable, "-m", "tersor.measuring.child", str(os.getpid())]
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environment(threads),
                start_new_session=True,  # its own group: workers that it starts are stopped and ended with it
            )
        except OSError as cause:  # no memory, no more processes allowed, no room for its words
            raise TargetError(f"{name} {_NOT_STARTED}: {reason(cause)}") from cause

    @property
    def held(self) -> int:
        """Bytes of memory that it holds now; 0 where it has ended."""
        return 0 if self._ended or self._over else held(self._process.pid)

    def end_for_memory(self, limit: int) -> None:
        """End it because it holds more memory than there is for it; whoever waits for it hears so."""
        self._over = f"it used {written(self.held)} of memory, but only {written(limit)} were left, and was stopped."
        self._signal(signal.SIGKILL)

    def load(self, order: dict[str, Any]) -> None:
        """Begin to load and to make a first call; `loaded` waits for it. Raises `TargetError`."""
        self._tell(order, _NOT_STARTED)

    def loaded(self) -> None:
        """Wait until it has loaded. Raises `TargetError`."""
        self._hear(_NOT_STARTED)
        self._pause()

    def warm_up(self, order: dict[str, Any]) -> None:
        """Run for a while, alone, and see how many calls fill a turn. Raises `TargetError`."""
        self._signal(signal.SIGCONT)
        self._calls = int(self._ask(order, _NOT_STARTED)["ready"])
        self._pause()

    def turn(self) -> float:
        """Seconds of one call, the mean of one turn. Raises `TargetError`."""
        self._signal(signal.SIGCONT)
        answer = self._ask({"calls": self._calls}, "failed while it was timed")
        self._pause()
        self.memory = int(answer["memory"])
        return float(answer["seconds"])

    def end(self) -> None:
        """End the process and all that it started; a second call does nothing, for its number may be another's by then."""
        if self._ended:
            return
        self._ended = True
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                _close(stream)

    def _ask(self, order: dict[str, Any], failed: str) -> dict[str, Any]:
        self._tell(order, failed)
        return self._hear(failed)

    def _tell(self, order: dict[str, Any], failed: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as cause:
            raise TargetError(f"{self.name} {failed}: {self._how_it_ended()}") from cause

    def _hear(self, failed: str) -> dict[str, Any]:
        try:
            answer = json.loads(self._line())
        except TimeoutError as cause:
            raise TargetError(f"{self.name} {failed}: no answer in {self._timeout:g} s. {self._tail()}") from cause
        except (OSError, EOFError) as cause:
            raise TargetError(f"{self.name} {failed}: {self._how_it_ended()}") from cause
        except ValueError as cause:  # something in it wrote between its answers
            raise TargetError(f"{self.name} {failed}: its answer cannot be read. {self._tail()}") from cause
        if "error" in answer:
            raise TargetError(f"{self.name} {failed}: {answer['error']}") from RuntimeError(answer["trace"])
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        end = time.monotonic() + self._timeout
        while b"\n" not in self._rest:
            patience = max(0.0, min(end - time.monotonic(), deadline.left()))  # what must be left may grow meanwhile
            ready, _, _ = select.select([source], [], [], min(_LOOK, patience))
            if not ready:
                if self._watch is not None:
                    self._watch.look()
                deadline.check()
                if time.monotonic() < end:
                    continue
                raise TimeoutError
            read = os.read(source, 65536)
            if not read:
                raise EOFError
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _pause(self) -> None:
        if sys.platform != "linux":  # elsewhere a stopped child would outlive a killed parent
            time.sleep(_SETTLE)
            return
        self._signal(signal.SIGSTOP)
        # Wait until every thread of it stands; a look first, so that an exit is left for Popen to reap.
        seen = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if seen is not None and seen.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _how_it_ended(self) -> str:
        if self._over:
            return self._over
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f"it closed its output. {self._tail()}"
        how = f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
        return f"{how}. {self._tail()}"

    def _tail(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "Its last output: " + " | ".join(lines[-3:]) if lines else "It wrote nothing to stderr."


def _environment(threads: int) -> dict[str, str]:
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    pinned = dict.fromkeys(_THREADS, str(threads)) if threads else {}
    return {**os.environ, **pinned, "PYTHONPATH": path}


def _close(stream: Any) -> None:
    try:
        stream.close()
    except OSError:  # a pipe that broke with something left to flush
        return
