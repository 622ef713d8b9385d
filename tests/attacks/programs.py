"""A small exported program whose file attacks change: its JSON, its members, its example inputs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

GRAPH = "models/model.json"
SAMPLE = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)) + 1


def written(path: Path, module: nn.Module | None = None, *example: Tensor) -> Path:
    """The file of `module`, by default of a `Small`."""
    torch.manual_seed(0)
    args = example or (torch.randn(2, 4),)
    shapes = tuple({0: Dim.DYNAMIC} for _ in args)
    torch.export.save(torch.export.export((module or Small()).eval(), args, dynamic_shapes=shapes), path)
    return path


def edited(source: Path, target: Path, change: Callable[[Any], object], member: str = GRAPH) -> Path:
    """A copy in which the JSON of one member went through `change`."""

    def edit(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return replaced(source, target, member, edit)


def replaced(source: Path, target: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy in which the bytes of one member went through `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.partition("/")[2] == member else data)
    return target


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def argument(name: str, kind: int = 1, **value: Any) -> dict[str, Any]:
    return {"name": name, "arg": value, "kind": kind}


def called(target: str, *inputs: dict[str, Any], out: str | None = "q") -> dict[str, Any]:
    """A call as the JSON holds it."""
    outputs = [{"as_tensor": {"name": out}}] if out else []
    return {
        "target": target,
        "inputs": list(inputs),
        "outputs": outputs,
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": out or "q",
    }


def described(*sizes: int) -> dict[str, Any]:
    """A contiguous float32 tensor as the JSON holds it."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.insert(0, {"as_int": step})
        step *= size
    return {
        "dtype": 7,
        "sizes": [{"as_int": size} for size in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": strides,
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }


def first(program: Any, *nodes: dict[str, Any], **made: dict[str, Any]) -> None:
    """Put `nodes`, which make the tensors `made`, before all others."""
    graph(program)["nodes"] = [*nodes, *graph(program)["nodes"]]
    graph(program)["tensor_values"] |= made
