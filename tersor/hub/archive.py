"""Exported programs (.pt2) on disk: the same model gives the same bytes, and no file that is read can run code."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from tersor.errors import ArtifactError
from tersor.hub.rehearsal import rehearse
from tersor.hub.schema import Foreign
from tersor.hub.screening import refused, screen

_DROPPED_META = ("from_node", "stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "custom")


def save_program(program: ExportedProgram, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write `program` without the traces of where it was made; its example inputs become zeros, one of which is stored."""
    path.write_bytes(program_bytes(program, extra))


def program_bytes(program: ExportedProgram, extra: Mapping[str, str] | None = None) -> memoryview:
    """What `save_program` writes. Made in memory: where a disk is full, torch's own writer ends the whole process."""
    for node in program.graph.nodes:
        for key in _DROPPED_META:
            node.meta.pop(key, None)
    program.example_inputs = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: torch.zeros((), dtype=t.dtype).expand(t.shape), program.example_inputs
    )
    made = io.BytesIO()
    torch.export.save(program, made, extra_files=dict(extra or {}))
    return made.getbuffer()


def load_program(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """The program in `path` and its extra files. Raises `ArtifactError` where the archive is damaged or holds code."""
    extra = screen(path)
    try:
        with _unheard("torch.export"):
            program = torch.export.load(path)
    except Exception as cause:  # torch checks little of what it reads
        said = " ".join(str(cause).split())[:300]
        raise ArtifactError(f"{path.name} cannot be read as an exported program ({said}); export it again.") from cause
    program._guards_code = []  # strings that torch would otherwise compile
    try:
        rehearse(program, path)
    except Foreign as cause:
        raise refused(path, str(cause)) from cause
    return program, extra


@contextmanager
def _unheard(name: str) -> Iterator[None]:
    """Without what the logger `name` says: torch logs a traceback for a file that it cannot read, and then raises as well."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
