"""A model as one file that loads without Tersor, written whole or not at all: a `torch.export` archive, or ONNX.

A file is replaced only where Tersor wrote it, which a mark inside says: a name typed wrong must cost nobody a file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from tersor.graph.model import Model
from tersor.hub.archive import program_bytes
from tersor.hub.blocks import store_codes
from tersor.hub.export import to_onnx
from tersor.hub.files import onnx_bytes
from tersor.store import files
from tersor.store.files import atomic_write
from tersor.target import Compressed

_MARK, _MAKER = "made_by.txt", "tersor"
ENDINGS = (".pt2", ".onnx")  # of what `write_model` writes


def write_model(path: Path, compressed: Compressed, stored: Model | None = None) -> None:
    """Write what the ending of `path` says: ONNX, or an archive; of `stored`, where that is another graph."""
    if path.suffix == ".onnx":
        write_onnx(path, compressed)
    else:
        write_program(path, compressed.model if stored is None else stored)


def refuse_foreign(path: Path) -> None:
    """Raise `StorageError` where something stands at `path` that is no model that Tersor wrote."""
    files.refuse_foreign(path, _is_ours)


def write_program(path: Path, model: Model) -> None:
    """Write `model` with a dynamic batch. The same model gives the same bytes. Raises `StorageError`."""
    refuse_foreign(path)
    atomic_write(path, program_bytes(model.program(), {_MARK: _MAKER}))


def write_onnx(path: Path, compressed: Compressed) -> None:
    """Write the float model with the integer codes of its linear layers (opset 21). Raises `ExportError`, `StorageError`."""
    refuse_foreign(path)
    onnx = store_codes(to_onnx(compressed), compressed.weights)
    onnx.producer_name = _MAKER
    atomic_write(path, onnx_bytes(onnx))


def _is_ours(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            marks = [i for i in archive.infolist() if i.filename.partition("/")[2] == f"extra/{_MARK}"]
            return len(marks) == 1 and marks[0].file_size == len(_MAKER) and archive.read(marks[0]) == _MAKER.encode()
    except Exception:  # no archive, whatever zipfile makes of it
        with path.open("rb") as file:
            return _producer(file.read(64)) == _MAKER.encode()


def _producer(head: bytes) -> bytes:
    """`producer_name` of an ONNX file, from its first bytes: the fields come in order, this is the second."""
    if len(head) < 4 or head[0] != 0x08 or head[1] > 0x7F or head[2] != 0x12:
        return b""
    return head[4 : 4 + head[3]]
