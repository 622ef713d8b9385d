"""A deadline also ends what never looks at the clock."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tersor.deadline import Deadline, TimeUp, enforced, until


def test_what_never_looks_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeUp), until(Deadline.after(0.1)), enforced():
        time.sleep(60)
    assert time.monotonic() - begin < 30
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    os.kill(os.getpid(), signal.SIGALRM)  # one that comes late ends nothing


def test_what_catches_everything_is_ended_all_the_same() -> None:
    caught: list[BaseException] = []

    def stubborn() -> None:
        try:
            time.sleep(60)
        except BaseException as cause:
            caught.append(cause)
        time.sleep(60)

    with pytest.raises(TimeUp), until(Deadline.after(0.05)), enforced():
        stubborn()
    assert [type(cause) for cause in caught] == [TimeUp]


def test_what_ends_in_time_is_left_alone() -> None:
    with until(Deadline.after(0.05)):
        with enforced():
            pass
        time.sleep(0.1)  # nothing is armed any more


def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a module would stay in this process, and the next import of it would give that."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.3)\ntime.sleep(0.3)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TimeUp), until(Deadline.after(0.05)), enforced():
        time.sleep(60 * importlib.import_module("slow_to_import").whole)
    assert sys.modules["slow_to_import"].whole


def test_an_import_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.deadline._IMPORTS", 1)
    (tmp_path / "never_imported.py").write_text("import time\nwhile True:\n    time.sleep(0.1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TimeUp), until(Deadline.after(0.05)), enforced():
        importlib.import_module("never_imported")


def test_an_alarm_of_the_users_own_is_left_alone() -> None:
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with until(Deadline.after(0.02)), enforced():
            time.sleep(0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == [True]


def test_threads_and_no_limit_are_nothing_to_it() -> None:
    ended = []

    def work() -> None:
        with until(Deadline.after(0.01)), enforced():
            time.sleep(0.05)
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with enforced():
        ended.append(True)
    assert ended == [True, True]
