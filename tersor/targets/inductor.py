"""PyTorch compiled by inductor when it is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from tersor.errors import MissingRuntime
from tersor.hub.program_runner import FILE, ProgramRunner, write_program
from tersor.target import Compressed, Runner, Target

_STATIC_SHAPES = 6
_COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass(frozen=True)
class Inductor(Target):
    """A `torch.export` archive, compiled to C++ on load, once for each of the first batch sizes it meets."""

    precision: str = "fp32"
    compiles: ClassVar[bool] = True

    def export(self, compressed: Compressed, folder: Path) -> None:
        write_program(compressed, folder)

    def load(self, folder: Path, threads: int = 0) -> Runner:
        if (missing := self.available()) is not None:
            raise MissingRuntime(missing)
        return ProgramRunner(folder, threads, _compiled)

    def available(self) -> str | None:
        wanted = os.environ.get("CXX")
        if any(shutil.which(name) for name in ((wanted,) if wanted else _COMPILERS)):
            return None
        return "Target inductor compiles C++ when it loads a model and found no compiler; install g++ or set CXX."

    def usage(self, inputs: tuple[str, ...]) -> str:
        names = ", ".join(inputs)
        return (
            "import torch\n"
            f'module = torch.compile(torch.export.load("{FILE}").module(check_guards=False))\n'
            f"# {names}: torch float32 tensors, first axis the batch, passed as the original model takes them\n"
            "with torch.inference_mode():\n"
            f"    outputs = module({names})"
        )


def _compiled(module: torch.nn.Module) -> Callable[..., Any]:
    """Static code is faster; after a few shapes one dynamic version serves the rest."""
    static, dynamic = torch.compile(module, dynamic=False), torch.compile(module, dynamic=True)
    seen: set[tuple] = set()

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        shapes = tuple(tuple(t.shape) for t in leaves)
        if shapes in seen or len(seen) < _STATIC_SHAPES:
            seen.add(shapes)
            return static(*args, **kwargs)
        return dynamic(*args, **kwargs)

    return call
