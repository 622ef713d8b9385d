"""Several processes take the same steps as one, and go on together when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def trained(folder: Path, count: int, kind: str = "narrow", kill: int = -1, divide: int = 0) -> list[torch.Tensor]:
    """The parameters after every step, by process; where `divide` is not 0, those of so many values are divided."""
    folder.mkdir()
    run(HERE / "shared.py", count, folder, kind, kill, divide, restarts=kill >= 0)
    return [torch.load(folder / f"states{rank}.pt", weights_only=True) for rank in range(count)]


def run(script: Path, count: int, *words: object, restarts: bool = False) -> None:
    """A script in so many processes, which are started again where that may be."""
    command = [sys.executable]
    if count > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone"]
        command += ["--max-restarts=2"] * restarts
    done = subprocess.run(
        [*command, str(script), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(map(str, script.parents[:3]))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["narrow", pytest.param("sparse", marks=pytest.mark.slow)])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, kind: str):
    (alone,) = trained(tmp_path / "one", 1, kind)
    both = trained(tmp_path / "two", 2, kind)
    assert len(alone) == 11
    assert torch.equal(both[0], both[1])
    assert float((alone - both[0]).abs().max()) < 1e-4 * float(alone.abs().max())


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_and_all_go_on(tmp_path: Path):
    (alone,) = trained(tmp_path / "one", 1)
    both = trained(tmp_path / "two", 2, kill=5)
    assert len(both[0]) < 11  # it did not begin anew
    torch.testing.assert_close(both[0][-1], alone[-1], rtol=1e-4, atol=1e-4)
