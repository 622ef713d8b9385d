"""SIGKILL at 20 moments of a training: 20 of 20 go on, and end with the same weights, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{SCRIPT.parent}:{SCRIPT.parents[1]}"}


def started(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "training"
    return process


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.strip()


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    process = started(tmp_path / "whole")
    begin = time.monotonic()
    wanted = finished(process)
    lasted = time.monotonic() - begin
    drawn, resumed = random.Random(0), 0
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = started(folder)
        time.sleep(drawn.uniform(0.0, lasted))
        process.send_signal(signal.SIGKILL)
        process.wait()
        resumed += (folder / "state").exists()
        assert finished(started(folder)) == wanted
    assert resumed >= 10  # most were killed on the way, not before the first step
