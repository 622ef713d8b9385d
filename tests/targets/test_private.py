"""Loading and running a model looks up no host and leaves no file behind in the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hubzoo import compressed

from tersor.target import Target
from tersor.targets import target_name
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.targets.openvino import OpenVINO

GUARD = """
import socket, sys, threading, time

def refuse(*args, **kwargs):
    print("network", args, file=sys.stderr)
    raise OSError("no network here")

socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
socket.socket.connect = refuse
import numpy as np
from pathlib import Path
from tersor.targets import target_called

runner = target_called({file!r}, "fp32").load(Path({folder!r}), 1)
runner.predict(np.load({image!r}))
for thread in threading.enumerate():  # what is sent is sent by a thread
    if thread is not threading.main_thread():
        thread.join(5)
time.sleep(0.2)
print(*({{"torch", "onnx_ir", "sympy"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("target", [OnnxRuntime(), OpenVINO()], ids=repr)
def test_nobody_is_told(target: Target, tmp_path: Path) -> None:
    made, home, folder = compressed("residual"), tmp_path / "home", tmp_path / "model"
    home.mkdir()
    folder.mkdir()
    target.export(made, folder)
    np.save(tmp_path / "image.npy", made.model.example[0].numpy())
    code = GUARD.format(file=target_name(target)[0], folder=str(folder), image=str(tmp_path / "image.npy"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CI", "ORT_", "XDG_")) and k != "HOME"}
    environment = kept | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "network" not in said.stderr
    assert said.stdout.strip() == ""  # what takes a second to import, which each process of the clock would wait for
    assert [str(p.relative_to(home)) for p in home.rglob("*")] == []
