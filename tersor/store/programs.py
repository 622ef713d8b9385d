"""A model as one file that loads without Tersor, written whole or not at all: a `torch.export` archive, or ONNX."""

from __future__ import annotations

from pathlib import Path

from tersor.graph.model import Model
from tersor.hub.archive import program_bytes
from tersor.hub.blocks import store_codes
from tersor.hub.export import to_onnx
from tersor.hub.files import onnx_bytes
from tersor.store.files import atomic_write
from tersor.target import Compressed

ENDINGS = (".pt2", ".onnx")  # of what `write_model` writes


def write_model(path: Path, compressed: Compressed, stored: Model | None = None) -> None:
    """Write what the ending of `path` says: ONNX, or an archive; of `stored`, where that is another graph."""
    if path.suffix == ".onnx":
        write_onnx(path, compressed)
    else:
        write_program(path, compressed.model if stored is None else stored)


def write_program(path: Path, model: Model) -> None:
    """Write `model` with a dynamic batch. The same model gives the same bytes. Raises `StorageError`."""
    atomic_write(path, program_bytes(model.program()))


def write_onnx(path: Path, compressed: Compressed) -> None:
    """Write the float model with the integer codes of its linear layers (opset 21). Raises `ExportError`, `StorageError`."""
    atomic_write(path, onnx_bytes(store_codes(to_onnx(compressed), compressed.weights)))
