"""A user's `torch.export` archive, screened before torch opens it (`hub.screening`)."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from tersor.errors import ArtifactError, ModelError
from tersor.hub.archive import load_program


def read(path: Path) -> ExportedProgram:
    """The exported program in `path`. Raises `ModelError` where it is missing, damaged, or could run code."""
    if not path.is_file():
        raise ModelError(f"There is no file '{path}'.")
    try:
        return load_program(path)[0]
    except ArtifactError as cause:
        raise ModelError(" ".join(str(cause).split())) from cause
