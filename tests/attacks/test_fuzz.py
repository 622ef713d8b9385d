"""Some of the cases that `python -m tests.attacks.fuzz` makes in large numbers, and that its watch sees what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fuzz import Watch, fuzz, reason


def test_random_hostile_archives_do_nothing() -> None:
    summary = fuzz(range(200), seed=26)
    assert summary.faults == []
    assert summary.cases == 200
    assert sum(n for said, n in summary.verdicts.items() if said.startswith("accepted")) > 0
    assert len(summary.verdicts) > 20  # they are refused for many reasons


def test_the_watch_sees_files_folders_and_processes(tmp_path: Path) -> None:
    watch = Watch()
    watch.armed = True
    try:
        (tmp_path / "a").write_text("x")
        os.mkdir(tmp_path / "b")
        subprocess.run([sys.executable, "-c", ""], check=True)
        (tmp_path / "a").read_text()
    finally:
        watch.armed = False
    seen = " ".join(watch.events)
    assert "for writing" in seen
    assert "os.mkdir" in seen
    assert "subprocess.Popen" in seen
    assert not [event for event in watch.events if event.startswith("open") and not event.endswith("for writing")]


def test_reasons_are_counted_without_what_differs() -> None:
    assert reason("case.pt2 holds name 'x y'. Such a file could") == reason(
        "case.pt2 holds name 'a'. Such a file could"
    )
