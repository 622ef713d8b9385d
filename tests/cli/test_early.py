"""What costs nothing to check is checked before anything is loaded; and every command that writes knows where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.cli.places import default

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from tersor.cli.app import run; run(sys.argv[1:])"


def refused(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and error, where torch cannot even be imported."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    shown = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, env=env, cwd=folder
    )
    return shown.returncode, shown.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compress", "net.py:f", "--out", "file"], 6, "file is a file, and a folder was to be written there"),
        (
            ["compress", "net.py:f", "--out", "mine"],
            6,
            "mine is not replaced: it is not empty and is no artifact of Tersor",
        ),
        (["compress", "net.py:f", "--out", "file/below"], 6, "a part of its path is a file; choose another folder"),
        (["compress", "net.py:f", "--out", "/proc/small"], 6, "cannot be written: "),
        (
            ["compress", "net.py:f", "--target", "openvino,tensorrt"],
            2,
            "no target 'tensorrt'; choose auto or any of eager",
        ),
        (["compress", "net.py:f", "--max-drop", "half"], 2, "no number; write 0.5% or 0.005"),
        (
            ["prune", "net.py:f", "--macs", "2x", "--out", "mine"],
            6,
            "mine is a folder, and a file was to be written there",
        ),
        (["prune", "net.py:f", "--macs", "2x", "--out", "p.pth"], 2, "p.pth ends in .pth; wanted .pt2 or .onnx"),
        (["quantize", "net.py:f", "--out", "noend"], 2, "noend ends in nothing; wanted .pt2 or .onnx"),
        (["sensitivity", "net.py:f", "--out", "mine/thesis.tex"], 6, "exists and Tersor did not write it"),
        (["sensitivity", "net.py:f", "--out", "file/s.html"], 6, "a part of its path is a file"),
        (["distil", "net.py:f", "--teacher", "t.py:g", "--out", "file/d.pt2"], 6, "a part of its path is a file"),
    ],
)
def test_it_is_said_before_torch_is_loaded(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    found, error = refused(tmp_path, *arguments, "--data", "d.npz")
    assert (found, error.startswith("error: "), said in error) == (code, True, True), error
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "mine", "thesis.tex"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nets/resnet.py:build", "resnet-small"),
        ("resnet.py", "resnet-small"),
        ("archive.v2.pt2", "archive.v2-small"),
        ("package.nets.resnet:build", "resnet-small"),
        ("module:build", "module-small"),
        ("/models/bert-base/", "bert-base-small"),
        ("bert.base", "bert.base-small"),
    ],
)
def test_places_are_called_after_the_model(model: str, name: str) -> None:
    assert default(model, "-small") == Path(name)
