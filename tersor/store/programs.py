"""A model as a `torch.export` archive that torch loads without Tersor, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.graph.model import Model
from tersor.hub.archive import save_program
from tersor.store.files import atomic_write


def write_program(path: Path, model: Model) -> None:
    """Write `model` with a dynamic batch. The same model gives the same bytes. Raises `StorageError`."""
    with TemporaryDirectory(prefix="tersor-") as scratch:
        archive = Path(scratch) / "model.pt2"
        save_program(model.program(), archive)
        atomic_write(path, archive.read_bytes())
