"""PyTorch itself, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tersor.hub.program_runner import FILE, ProgramRunner, write_program
from tersor.target import Compressed, Runner, Target


@dataclass(frozen=True)
class Eager(Target):
    """A `torch.export` archive run by torch. Weight forms and feeds are made dense: it computes in float32."""

    precision: str = "fp32"

    def export(self, compressed: Compressed, folder: Path) -> None:
        write_program(compressed, folder)

    def load(self, folder: Path, threads: int = 0) -> Runner:
        return ProgramRunner(folder, threads, lambda module: module)

    def available(self) -> str | None:
        return None

    def usage(self, inputs: tuple[str, ...]) -> str:
        names = ", ".join(inputs)
        return (
            "import torch\n"
            f'module = torch.export.load("{FILE}").module(check_guards=False)\n'
            f"# {names}: torch float32 tensors, first axis the batch, passed as the original model takes them\n"
            "with torch.inference_mode():\n"
            f"    outputs = module({names})"
        )
