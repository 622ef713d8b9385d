"""One candidate's failure is its own: the reason is noted, the others go on, and what was finished is delivered."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tersor import calibrated, search, summary, trials
from tersor.errors import BudgetError, StorageError, TargetError
from tersor.measuring.clock import AGAIN, Race
from tersor.pipeline import compress
from tersor.report import Report
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.targets.openvino import OpenVINO
from tersor.trials import Trial


class Spectrum(nn.Module):
    """OpenVINO gets the shape of a discrete Fourier transform wrong; ONNX Runtime runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.fft.rfft2(torch.relu(self.before(x)), norm="ortho").abs()  # what OpenVINO refuses
        return self.after(size.mean((2, 3)))


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Races without processes: who comes first is fastest."""

    def raced(trials: Sequence[Trial], inputs: Any, *, threads: int, rounds: int, **_: Any) -> Race:
        samples = {trial.name: (1e-3 * (1 + i),) * 5 for i, trial in enumerate(trials)}
        return Race(samples | {trials[0].name + AGAIN: (1e-3,) * 5}, trials[0].name, (0.0, 0.0), threads)

    monkeypatch.setattr(trials, "time_side_by_side", raced)


without_processes = pytest.mark.usefixtures("no_clock")


def spectrum() -> nn.Module:
    torch.manual_seed(0)
    return Spectrum().eval()


def images() -> list[torch.Tensor]:
    return list(torch.randn(240, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(40))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def rows() -> list[torch.Tensor]:
    return list(torch.randn(240, 12, generator=torch.Generator().manual_seed(1)).split(40))


def compressed(target: str = "onnxruntime,openvino:fp32", **more: Any) -> Report:
    return compress(small(), rows(), metric="cosine", max_drop="1%", target=target, threads=1, **more)


def note(report: Report, name: str) -> str:
    return next(t.note for t in report.tried if t.name == name)


def test_what_one_runtime_refuses_another_delivers(tmp_path: Path) -> None:
    out = tmp_path / "small"
    targets = "onnxruntime:fp32,openvino:fp32"
    report = compress(spectrum(), images(), metric="cosine", max_drop="1%", target=targets, out=out, threads=1)
    assert report.after.name.startswith("onnxruntime fp32")
    assert (out / "model" / "model.onnx").exists()
    assert "OpenVINO refuses the model" in note(report, "openvino fp32")


def test_a_refusal_names_the_operator_and_the_line() -> None:
    with pytest.raises(TargetError) as caught:
        compress(spectrum(), images(), metric="cosine", max_drop="1%", target="openvino:fp32", threads=1)
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(source) if "# what OpenVINO refuses" in text)
    said = str(caught.value)
    assert f"It cannot run the operator DFT at {__file__}:{line}." in said
    assert "damaged" not in said
    assert said.count("openvino fp32:") == 1


def raising(kind: type[Exception] = RuntimeError, text: str = "what a runtime says") -> Callable[..., Any]:
    def method(*_: Any, **__: Any) -> Any:
        raise kind(text)

    return method


@without_processes
@pytest.mark.parametrize("method", ["available", "export"])
@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_an_exporter_raises_what_it_likes(method: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINO, method, raising(kind))
    report = compressed("onnxruntime:fp32,openvino:fp32")
    assert report.after.name.startswith("onnxruntime fp32")
    assert note(report, "openvino fp32") == f"{kind.__name__}: what a runtime says."


@without_processes
def test_a_candidate_that_cannot_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on held-out data nor on evaluation data."""
    monkeypatch.setattr(OnnxRuntime, "load", raising())
    report = compressed("onnxruntime:fp32,openvino:fp32")
    assert report.after.name.startswith("openvino fp32")
    assert "what a runtime says" in note(report, "onnxruntime fp32")


CRASHES = """
import os, signal
from tersor.targets.onnxruntime import _Runner

predict = _Runner.predict


def dies(self, *inputs):
    if len(inputs[0]) > 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return predict(self, *inputs)


_Runner.predict = dies
"""


def test_a_candidate_that_crashes_on_the_batches_it_is_judged_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the one item that is timed. In this process it would end the command."""
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # what child processes begin with
    monkeypatch.syspath_prepend(tmp_path)
    report = compressed("onnxruntime:fp32,openvino:fp32")
    assert report.after.name == "openvino fp32"
    assert "predicting a batch of held-out data, its process ended with signal SIGSEGV" in note(
        report, "onnxruntime fp32"
    )


@without_processes
def test_a_metric_that_fails_for_one_candidate_only() -> None:
    """Three calls are made of the original and of the first candidate; what comes then is refused a score."""
    calls: list[int] = []

    def choosy(predict: Any, batches: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("no item was right")
        return 1.0

    report = compress(small(), rows(), metric=choosy, max_drop="1%", target="onnxruntime:fp32,openvino:fp32", threads=1)
    assert sum("raised ZeroDivisionError: no item was right" in t.note for t in report.tried) == 1


@without_processes
def test_outputs_that_are_nan_are_the_candidates_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.targets import openvino

    monkeypatch.setattr(openvino._Runner, "predict", lambda self, x: (np.full((len(x), 4), np.nan, np.float32),))
    report = compressed("onnxruntime:fp32,openvino:fp32")
    assert report.after.name.startswith("onnxruntime fp32")


@without_processes
def test_a_fit_that_fails_leaves_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrated.Calibrated, "fit", raising(text="Constraints violated (L['x'].size()[0])!"))
    report = compressed("onnxruntime")
    assert report.after.name.startswith("onnxruntime fp32")
    assert any("Quantizing everything to int8 failed" in n and "Constraints violated" in n for n in report.notes)


@without_processes
@pytest.mark.parametrize("step", ["_table", "_placements"])
def test_a_step_of_the_search_may_fail(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.Search, step, raising(ValueError, "not as it should be"))
    report = compressed("onnxruntime")
    assert report.after.score
    if step != "_plan" or any("The plan" in n for n in report.notes):
        assert any(
            "failed; the search continued without it: ValueError: not as it should be." in n for n in report.notes
        )


@without_processes
def test_a_fidelity_check_is_only_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "fidelity", raising(IndexError, "list index out of range"))
    report = compressed("onnxruntime:int8")
    assert any(
        "could not be compared with a simulation of its file. IndexError: list index out" in n for n in report.notes
    )


@without_processes
def test_nothing_left_says_why_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVINO, "export", raising(text="one reason"))
    monkeypatch.setattr(OnnxRuntime, "export", raising(text="another reason"))
    with pytest.raises(TargetError, match=r"onnxruntime fp32: .*another reason.* openvino fp32: .*one reason"):
        compressed("onnxruntime:fp32,openvino:fp32")


@without_processes
def test_what_was_lost_on_held_out_data_is_said() -> None:
    """Training items lie near the borders between classes, evaluation items far from them."""
    net = small()
    x = torch.randn(20000, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = net(x)
    top = scores.topk(2, 1).values
    order = (top[:, 0] - top[:, 1]).argsort()
    near, far = ([(x[o], scores[o].argmax(1))] for o in (order[:400].sort().values, order[-400:].sort().values))
    with pytest.raises(BudgetError) as caught:
        compress(net, near, eval_data=far, max_drop="0.1%", target="onnxruntime:int8", threads=1)
    said = str(caught.value)
    assert "on held-out data, on which candidates are selected" in said
    lost = float(said.split("(")[1].split(" points worse")[0])
    assert lost > 0.1


@without_processes
def test_a_probe_that_cannot_be_exported_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.export refuses a narrower network whose batch is fixed: the plans go on, as if all time were arithmetic."""
    monkeypatch.setattr(search, "shrink", raising(text="Constraints violated (L['x'].size()[0])! For more information"))
    report = compressed("onnxruntime")
    assert any("Timing a narrower model failed" in n and "Constraints violated" in n for n in report.notes)
    assert not any("Planning failed" in n for n in report.notes)


@without_processes
def test_a_disk_that_is_too_small_for_one_is_not_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(OpenVINO, "export", full)
    report = compressed("onnxruntime:fp32,openvino:fp32")
    assert report.after.name.startswith("onnxruntime fp32")
    assert "is full; free some space" in note(report, "openvino fp32")


@without_processes
def test_a_disk_that_is_too_small_for_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "room", raising(StorageError, "no room"))
    with pytest.raises(StorageError, match="no room"):
        compressed("onnxruntime:fp32,openvino:fp32")


@without_processes
@pytest.mark.parametrize("part", ["compare", "watched", "_compared"])
def test_a_part_of_the_report_may_fail(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, part, raising(IndexError, "list index out of range"))
    report = compressed("onnxruntime:fp32")
    assert any("The report lacks" in n and "list index out of range" in n for n in report.notes)


@without_processes
def test_what_cannot_be_delivered_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "usage", raising(text="what an author forgot"))
    report = compressed("onnxruntime:fp32,openvino:fp32", out=tmp_path / "small")
    assert report.after.name.startswith("openvino fp32")
    assert "what an author forgot" in note(report, "onnxruntime fp32")


@without_processes
def test_a_recipe_whose_fit_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(
        "tersor_recipe: 1\ntarget: {file: onnxruntime, precision: int8}\nseed: 0\ncalibration_items: 8\nthreads: 1\n"
        "feeds: static\ntechniques: {'0': GPTQ(bits=8)}\nkeep: {}\n"
    )
    monkeypatch.setattr(calibrated.Calibrated, "fit", raising(text="the factor is not finite"))
    with pytest.raises(TargetError, match="the factor is not finite"):
        compressed("onnxruntime", recipe=recipe)
