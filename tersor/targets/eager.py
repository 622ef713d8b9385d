"""PyTorch itself, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from tersor.hub.program_runner import ProgramRunner, shown, write_program
from tersor.target import Compressed, Input, Runner, Target


@dataclass(frozen=True)
class Eager(Target):
    """A `torch.export` archive run by torch. Weight forms and feeds are made dense: it computes in float32."""

    precision: str = "fp32"
    in_torch: ClassVar[bool] = True

    def export(self, compressed: Compressed, folder: Path) -> None:
        write_program(compressed, folder)

    def load(self, folder: Path, threads: int = 0) -> Runner:
        return ProgramRunner(folder, threads, opened)

    def available(self) -> str | None:
        return None

    def usage(self, inputs: Sequence[Input], outputs: Sequence[str], threads: int) -> str:
        return shown(opened, "Any batch size works.", inputs, threads)


def opened(program: torch.export.ExportedProgram, threads: int) -> Callable[..., Any]:
    """A function of the inputs, as the original model takes them."""
    if threads:
        torch.set_num_threads(threads)
    module = program.module(check_guards=False)

    def run(*inputs: Any, **named: Any) -> Any:
        with torch.inference_mode():
            return module(*inputs, **named)

    return run
