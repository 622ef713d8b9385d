"""A model as one file that loads without Tersor, written whole or not at all: a `torch.export` archive, or ONNX."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.errors import ExportError
from tersor.graph.model import Model
from tersor.hub.archive import save_program
from tersor.hub.blocks import store_codes
from tersor.hub.export import to_onnx
from tersor.hub.files import save_onnx
from tersor.store.files import atomic_write
from tersor.target import Compressed


def write_program(path: Path, model: Model) -> None:
    """Write `model` with a dynamic batch. The same model gives the same bytes. Raises `StorageError`."""
    with TemporaryDirectory(prefix="tersor-") as scratch:
        archive = Path(scratch) / "model.pt2"
        save_program(model.program(), archive)
        atomic_write(path, archive.read_bytes())


def write_onnx(path: Path, compressed: Compressed) -> None:
    """Write the float model with the integer codes of its linear layers (opset 21). Raises `ExportError`, `StorageError`."""
    with TemporaryDirectory(prefix="tersor-") as scratch:
        file = Path(scratch) / "model.onnx"
        onnx = store_codes(to_onnx(compressed), compressed.weights)
        save_onnx(onnx, file)
        if len(list(Path(scratch).iterdir())) > 1:
            raise ExportError("The model has more than 2 GB, which one ONNX file cannot hold; write a .pt2 archive.")
        atomic_write(path, file.read_bytes())
