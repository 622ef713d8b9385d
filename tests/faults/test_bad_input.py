"""Whatever a user brings: one sentence, an exit code, and what was in the folder is still there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tersor.cli import app

SUBJECT = """
import torch
from torch import nn

def net(weight=1.0):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return module.eval(), torch.randn(2, 1, 6, 6)

def nan():
    module, x = net()
    module[0].weight.data[1, 0, 0, 0] = float("nan")
    return module, x

def quantised():
    module, x = net()
    class Fake(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module
        def forward(self, x):
            return self.inner(torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127))
    return Fake().eval(), x

def data(count=400, fill=None):
    x = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = net()[0](x).argmax(1)
    if fill is not None:
        fill(x)
    return [(x[i:i + 50], y[i:i + 50]) for i in range(0, count, 50)]

def inf():
    def put(x): x[77, 0, 2, 2] = float("inf")
    return data(fill=put)

def zero():
    return data(fill=lambda x: x.zero_())

def empty():
    return []

def wide():
    return [(torch.randn(50, 1, 6, 7), torch.zeros(50, dtype=torch.long))]

def raising(predict, batches):
    raise RuntimeError("the judge is ill")

def nothing(predict, batches):
    return "good"

calls = []
def falling(predict, batches):
    calls.append(1)
    return 1.0 / len(calls)
"""

CASES = {
    "NaN weights": ("nan", "data", [], 2, r"'0\.weight' of model .* holds 1 NaN"),
    "Inf in the data": ("net", "inf", [], 2, r"Inf.*item"),
    "all zero": ("net", "zero", [], 2, r"zero|constant"),
    "empty": ("net", "empty", [], 2, r"no batches|empty"),
    "wrong shapes": ("net", "wide", [], 2, r"6, 7"),
    "a metric that raises": ("net", "data", ["--metric", "SUBJECT:raising"], 2, r"the judge is ill"),
    "a metric that gives no number": ("net", "data", ["--metric", "SUBJECT:nothing"], 2, r"must return a number"),
    "an unreachable budget": ("net", "data", ["--metric", "SUBJECT:falling"], 3, r"the best (is|there was)"),
    "already quantized": ("quantised", "data", [], 2, r"already quantized|fake_quant"),
    "an unknown target": ("net", "data", ["--target", "abacus"], 2, r"abacus.*choose"),
    "a drop that is no number": ("net", "data", ["--max-drop", "some"], 2, r"'some' is no number"),
    "no such file": ("missing", "data", [], 2, r"missing"),
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bad") / "bad_subject.py"
    path.write_text(SUBJECT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "hush", lambda: None)
        yield path


@pytest.fixture(scope="module")
def existing(subject: Path) -> Path:
    """An artifact that was there before."""
    out = subject.parent / "out"
    with pytest.raises(SystemExit) as ended:
        app.run(_command(subject, "net", "data", out, []))
    assert not ended.value.code
    return out


def _command(subject: Path, model: str, data: str, out: Path, more: list[str]) -> list[str]:
    """Float only and one runtime: what fails, fails the same with all of them."""
    more = [word.replace("SUBJECT", str(subject)) for word in more]
    if "--target" not in more:
        more = [*more, "--target", "onnxruntime:fp32"]
    base = ["compress", f"{subject}:{model}", "--data", f"{subject}:{data}", "--out", str(out), "--threads", "1"]
    return [*base, *more]


def _ended(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        app.run(arguments)
    return int(ended.value.code or 0), capfd.readouterr().err


def _content(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_lost(
    name: str, subject: Path, existing: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data, more, code, said = CASES[name]
    before = _content(existing)
    found, err = _ended(_command(subject, model, data, existing, more), capfd)
    assert found == code, err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, err
    message = err[err.index("error:") :]
    assert re.search(said, " ".join(message.split())), message
    assert "Traceback" not in err
    assert _content(existing) == before
    assert not [p for p in existing.parent.iterdir() if ".tersor-" in p.name]


def test_a_missing_runtime_says_what_to_install(
    subject: Path, existing: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    for module in ("tersor.targets.openvino", "tersor.targets.onnxruntime"):
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "find_spec", lambda n: None if n == "openvino" else find(n))
    before = _content(existing)
    code, err = _ended(_command(subject, "net", "data", existing, ["--target", "openvino:fp32"]), capfd)
    assert code == 4, err
    assert "pip install 'openvino" in " ".join(err.split())
    assert _content(existing) == before


def test_a_file_in_the_way_is_not_replaced(subject: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("three years of work")
    code, err = _ended(_command(subject, "net", "data", out, []), capfd)
    assert code == 6, err
    assert (out / "thesis.txt").read_text() == "three years of work"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount")
@pytest.mark.parametrize("said", ["the disk is full", "the disk is read-only"])
def test_a_full_or_read_only_disk(said: str, subject: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = _command(subject, "net", "data", tmp_path / "out", [])
        assert _ended(command, capfd)[0] == 0
        before = _content(tmp_path / "out")
        if "full" in said:
            with (tmp_path / "rest").open("wb") as rest, pytest.raises(OSError, match="No space"):
                rest.write(bytes(4 << 20))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        code, err = _ended([*command, "--seed", "1"], capfd)
        assert code == 6, err
        assert said in " ".join(err.split())
        assert _content(tmp_path / "out") == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
