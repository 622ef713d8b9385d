"""PyTorch compiled by inductor when it is loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from tersor.errors import MissingRuntime
from tersor.hub.program_runner import ProgramRunner, shown, write_program
from tersor.target import Compressed, Input, Runner, Target

_COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass(frozen=True)
class Inductor(Target):
    """A `torch.export` archive, compiled to C++ on load, once for each of the first batch sizes it meets."""

    precision: str = "fp32"
    in_torch: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    def export(self, compressed: Compressed, folder: Path) -> None:
        write_program(compressed, folder)

    def load(self, folder: Path, threads: int = 0) -> Runner:
        if (missing := self.available()) is not None:
            raise MissingRuntime(missing)
        return ProgramRunner(folder, threads, opened)

    def available(self) -> str | None:
        wanted = os.environ.get("CXX")
        if any(shutil.which(name) for name in ((wanted,) if wanted else _COMPILERS)):
            return None
        return "Target inductor compiles C++ when it loads a model and found no compiler; install g++ or set CXX."

    def usage(self, inputs: Sequence[Input], outputs: Sequence[str], threads: int) -> str:
        return shown(
            opened, "The first call compiles, and so does the first one with a new batch size.", inputs, threads
        )


def opened(program: torch.export.ExportedProgram, threads: int) -> Callable[..., Any]:
    """A function of the inputs, as the original model takes them; static code is faster, and serves the first few shapes."""
    if threads:
        torch.set_num_threads(threads)
    module = program.module(check_guards=False)
    static, dynamic = torch.compile(module, dynamic=False), torch.compile(module, dynamic=True)
    seen: set[tuple] = set()

    def run(*inputs: Any, **named: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves((inputs, named))
        shapes = tuple(tuple(t.shape) for t in leaves)
        if len(seen) < 6:
            seen.add(shapes)
        with torch.inference_mode():
            return static(*inputs, **named) if shapes in seen else dynamic(*inputs, **named)

    return run
