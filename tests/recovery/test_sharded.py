"""Parameters that are divided among processes take the steps of one process that has them all, in a part of the memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from sharded import CASES, DIVIDE
from test_many import run, trained

from tersor.cli.training import settings
from tersor.errors import InputError
from tersor.recovery.wish import Recovery

SCRIPT = Path(sharded.__file__)
CLOSE = {"half": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of every case. One case goes on from what one process alone had begun."""
    folder = tmp_path_factory.mktemp("divided")
    run(SCRIPT, 2, folder, "cases")
    return folder


def of(folder: Path, case: str) -> list[Any]:
    return [torch.load(folder / f"{case}{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", list(CASES))
def test_divided_parameters_take_the_steps_of_whole_ones(folder: Path, case: str):
    alone = torch.load(folder / f"{case}_alone.pt", weights_only=True)
    both = of(folder, case)
    close = CLOSE.get(case, 1e-4)
    steps = alone["states"][-len(both[0]["states"]) :]
    error = float((steps - both[0]["states"]).abs().max())
    assert error < close * float(steps.abs().max())
    assert error < 0.01 * float((steps[0] - steps[-1]).abs().max())  # they did move
    for name in both[0].keys() - {"bytes"}:
        assert torch.equal(both[0][name], both[1][name])  # bit for bit
    for name in alone.keys() - {"states", "bytes"}:
        torch.testing.assert_close(both[0][name], alone[name], rtol=10 * close, atol=10 * close)
    assert max(int(each["bytes"]) for each in both) < 0.6 * int(alone["bytes"])
    assert len(both[0]["states"]) == len(alone["states"]) - 4 * (case == "averaged")


def test_one_process_goes_on_from_what_several_have_written(folder: Path):
    went_on, alone = (torch.load(folder / f"adam_{name}.pt", weights_only=True) for name in ("went_on", "alone"))
    assert len(went_on["states"]) == 2  # what was written came after the step before the last
    torch.testing.assert_close(went_on["states"], alone["states"][-2:], rtol=1e-4, atol=1e-5)


def test_one_layer_is_whole_at_a_time(folder: Path):
    """Six layers of 256 x 256; the student's and the teacher's are read one after the other."""
    check(of(folder, "cases"), 6, 256)


@pytest.mark.slow
def test_two_processes_hold_half_each_of_200_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(
        "MALLOC_MMAP_THRESHOLD_", "262144"
    )  # what is freed is given back, so that peaks are those of tensors
    run(SCRIPT, 2, tmp_path, "divided")
    run(SCRIPT, 2, tmp_path, "whole")
    divided, whole = of(tmp_path, "divided"), of(tmp_path, "whole")
    check(divided, 12, 2048)
    for ours, theirs in zip(divided, whole, strict=True):
        assert theirs["parameters"] > 200e6
        assert ours["peak"] < 0.7 * theirs["peak"]


def check(found: list[Mapping[str, int]], count: int, size: int) -> None:
    layer, biases = 4 * size**2, 4 * count * size
    for each in found:
        assert each["parameters"] == each["teacher"] == count * layer // 2 + biases
        assert each["state"] < 1.01 * 2 * (count * layer // 2 + biases)
        assert layer <= each["whole"] <= 2 * layer


@pytest.mark.slow
def test_divided_parameters_survive_a_process_that_dies(tmp_path: Path):
    (alone,) = trained(tmp_path / "one", 1)
    both = trained(tmp_path / "two", 2, kill=5, divide=DIVIDE)
    assert len(both[0]) < 11  # it did not begin anew
    torch.testing.assert_close(both[0][-1], alone[-1], rtol=1e-4, atol=1e-4)


def test_one_process_has_nobody_to_share_with():
    said = re.escape(
        "sharded=True divides the parameters among processes, but there is only one; start several with torchrun"
    )
    with pytest.raises(InputError, match=said):
        Recovery.of("1epochs", sharded=True)


def test_an_optimiser_that_needs_whole_matrices_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        InputError, match="muon needs whole matrices, but sharded=True divides them; choose adamw or sgd"
    ):
        Recovery.of("1epochs", sharded=True, **settings(["optimiser=muon"]))
    assert settings(["sharded=true", "batch=8"]) == {"sharded": True, "batch": 8}


def test_how_it_was_divided_changes_no_recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    one, other = (Recovery.of("1epochs", optimiser="adamw", sharded=sharded) for sharded in (True, False))
    assert one is not None
    assert other is not None
    assert (one.sharded, other.sharded) == (True, False)
    assert one.written == other.written
