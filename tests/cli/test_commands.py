"""The command line without a pipeline: help, errors, inspect, doctor, and what reaches which stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tersor.cli import app, doctor

START = [sys.executable, "-c", "from tersor.cli import main; main()"]
NET = """
import torch
from torch import nn
print("loading the user's file")
def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), torch.zeros(1, 1, 4, 4)
def bare():
    return make()[0]
def data():
    print("reading the user's data")
    for _ in range(3):
        yield torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,))
def broken():
    raise RuntimeError("no weights here")
def slow():
    import time
    print("sleeping", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "net_of_mine.py"
    path.write_text(textwrap.dedent(NET))
    return path


def tersor(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run([*START, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=120)


@dataclass(frozen=True)
class Shown:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """A command in this process: loading torch once is enough."""
    monkeypatch.setattr(app, "hush", lambda: None)

    def call(*arguments: object) -> Shown:
        capfd.readouterr()
        code = 0
        try:
            app.run([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return Shown(code, out, err)

    return call


Here = Callable[..., Shown]


def test_help_loads_nothing_heavy() -> None:
    """So that it is quick; how quick is no business of a test."""
    code = (
        "import sys\n"
        "from tersor.cli import app\n"
        "try:\n    app.run(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'onnx', 'jinja2', 'yaml') if m in sys.modules], file=sys.stderr)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "compress" in run.stdout
    assert run.stderr.strip() == "[]"


def test_every_command_has_help_and_json(here: Here) -> None:
    for command in (
        "compress",
        "prune",
        "quantize",
        "distil",
        "sensitivity",
        "inspect",
        "benchmark",
        "verify",
        "report",
        "doctor",
        "demo",
    ):
        shown = here(command, "--help")
        assert shown.returncode == 0
        assert "--json" in shown.stdout
        assert "<bool>" not in shown.stdout
    assert "<bool>" not in here("--help").stdout


def test_python_m_is_the_same_command() -> None:
    root = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-m", "tersor", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert run.stdout.startswith("tersor ")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, tersor; print('torch' in sys.modules, sorted(tersor.__all__) == tersor.__all__)"
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "False True\n"
    )


def test_every_public_name_is_there() -> None:
    import tersor

    for name in tersor.__all__:
        assert getattr(tersor, name).__doc__
        assert name in dir(tersor)
    with pytest.raises(AttributeError, match="no attribute 'squeeze'"):
        tersor.squeeze  # noqa: B018


def test_version(here: Here) -> None:
    assert here("--version").stdout.startswith("tersor 0.")


def test_inspect_shows_what_can_be_pruned(net: Path, here: Here) -> None:
    shown = here("inspect", f"{net}:make")
    assert shown.returncode == 0
    for expected in (
        "91 parameters",
        "convolution 3x3",
        "4 x 1 x 3 x 3",
        "Prunable: 1 axis, ",
        "output of the network",
    ):
        assert expected in shown.stdout


def test_json_alone_reaches_stdout(net: Path) -> None:
    shown = tersor("inspect", f"{net}:bare", "--data", f"{net}:data", "--json")
    found = json.loads(shown.stdout)
    assert found["parameters"] == 91
    assert found["inputs"] == [{"name": "input", "shape": [1, 4, 4], "type": "float32"}]
    assert [axis["refused"] is None for axis in found["axes"]] == [True, False]
    assert "loading the user's file" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "{net}:gone"], 2, "has no function 'gone'; it has: bare, broken, data, make, slow"),
        (["inspect", "{net}:broken"], 2, "RuntimeError: no weights here at line"),
        (["inspect", "{net}:bare"], 2, "came without an example input"),
        (["compress", "{net}:make", "--data", "d", "--out", "o", "--max-drop", "2"], 2, "did you mean 2%?"),
        (["compress", "{net}:make", "--data", "d", "--out", "o", "--time-limit", "soon"], 2, "write 90s, 10m or 1.5h"),
        (["compress", "{net}:make", "--data", "d", "--out", "o", "--memory-limit", "big"], 2, "write 2GB or 800MB"),
        (["prune", "{net}:make", "--data", "d", "--weights", "2x", "--memory-limit", "1MB"], 2, "Allow at least"),
        (["compress", "{net}:make", "--data", "{net}:gone", "--out", "o"], 2, "has no function 'gone'"),
        (["distil", "--teacher", "{net}:make", "--data", "d"], 2, "name a student, or give width or depth"),
        (
            ["prune", "{net}:make", "--data", "d", "--macs", "2x", "--recover", "1epochs", "--training", "bach=32"],
            2,
            "There is no training setting 'bach=32'; write one of optimizer=..., schedule=..., batch=...",
        ),
        (
            ["distil", "a", "--teacher", "b", "--data", "d", "--training", "batch=many"],
            2,
            "The training setting 'batch=many' cannot be read; write for example batch=32.",
        ),
        (
            ["quantize", "{net}:make", "--data", "d", "--rate", "0.1", "--training", "batch=32"],
            2,
            "--rate, --training configure training, but nothing is trained without --recover; add for example --recover",
        ),
        (["report", "{net}"], 5, "is not a folder; give the folder that was written by compress"),
        (["verify", "no_such_folder"], 5, "is not a folder"),
        (["benchmark", "no_such_folder"], 5, "is not a folder"),
    ],
)
def test_an_error_is_one_sentence_and_a_code(net: Path, here: Here, arguments: list[str], code: int, said: str) -> None:
    shown = here(*(a.format(net=net) for a in arguments))
    assert shown.returncode == code
    assert said in shown.stderr
    last = shown.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in shown.stderr


def test_an_error_as_json(net: Path, here: Here) -> None:
    shown = here("inspect", f"{net}:gone", "--json")
    error = json.loads(shown.stdout)["error"]
    assert (shown.returncode, error["type"], error["exit_code"]) == (2, "ModelError", 2)


def test_the_traceback_is_shown_on_request(net: Path) -> None:
    shown = tersor("inspect", f"{net}:broken", "--traceback")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "RuntimeError: no weights here" in shown.stderr


def test_what_is_not_foreseen_is_short_and_names_the_traceback(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[doctor.Finding]:
        raise KeyError("surprise")

    monkeypatch.setattr(doctor, "examine", broken)
    shown = here("doctor")
    assert shown.returncode == 1
    assert shown.stderr == "error: KeyError: 'surprise' (unexpected; --traceback shows where)\n"


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted;"), (signal.SIGTERM, 143, "stopped by SIGTERM;")]
)
def test_a_signal_ends_cleanly(net: Path, number: signal.Signals, code: int, said: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [*START, "inspect", f"{net}:slow"]

    def listen() -> None:  # a background job of a shell ignores the interrupt, and its children with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=listen
    )
    assert process.stdout is not None
    while "sleeping" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.splitlines()[-1].startswith(f"{said} nothing was replaced.")
    assert "Traceback" not in error


def test_doctor_finds_the_targets_and_the_machine() -> None:
    shown = tersor("doctor", "--json", OMP_NUM_THREADS="1")
    found = json.loads(shown.stdout)
    assert shown.returncode == (0 if found["usable"] else 4)
    by_name = {f["what"]: f for f in found["findings"]}
    assert by_name["torch"]["state"] == "ok"
    assert by_name["OMP_NUM_THREADS"]["state"] == "warning"
    assert "unset OMP_NUM_THREADS" in by_name["OMP_NUM_THREADS"]["advice"]
    assert any(name.startswith("target eager") for name in by_name)
    assert {"cores", "load", "compiler", "processor", "memory"} <= by_name.keys()


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {
        "onnx": None,
        "torchvision": "0.30.0",
        "torch": "2.13.0+cpu",
        "onnxruntime": "1.31",
        "onnxruntime-gpu": "1.31",
    }
    monkeypatch.setattr(doctor, "_version", lambda name: seen.get(name, "1.0"))
    monkeypatch.setattr(doctor, "_imports", lambda name: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = {f.what: f for f in [*doctor._packages(), *doctor._machine(), *doctor._traps()]}
    assert (found["onnx"].state, found["onnx"].advice) == ("missing", "pip install onnx")
    assert found["torchvision"].state == "warning"
    assert "cannot be imported" in found["torchvision"].seen
    assert found["compiler"].state == "missing"
    traps = [f for f in doctor._traps() if f.what == "onnxruntime"]
    assert "keep one" in traps[0].advice
