"""The state of a training in one file, whole or not at all; a file that is damaged or of another training is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load as unpacked
from safetensors.torch import save as packed
from torch import Tensor

from tersor.store.files import atomic_write
from tersor.store.weights import metadata


def save(path: Path, tensors: Mapping[str, Tensor], values: Any) -> None:
    """Write a checkpoint. Raises `StorageError`."""
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, packed(whole, {"values": text, "sha256": _hash(whole, text)}))


def load(path: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], Any] | None:
    """(tensors, values) of a checkpoint whose parameters have these shapes."""
    try:
        data = path.read_bytes()
        header, tensors = metadata(data, str(path)), unpacked(data)
        if header["sha256"] != _hash(tensors, header["values"]):
            return None
        values = json.loads(header["values"])
    except Exception:  # whatever safetensors and json make of a damaged file
        return None
    found = {name.partition("/")[2]: tuple(t.shape) for name, t in tensors.items() if name.startswith("parameter/")}
    return (tensors, values) if found == {name: tuple(shape) for name, shape in shapes.items()} else None


def owner(key: str) -> str:
    """The parameter that a tensor of a checkpoint belongs to."""
    room, _, name = key.partition("/")
    if room == "best":
        return owner(name)
    return name.partition("/")[2] if room == "optimiser" else name


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(packed(dict(tensors)) + text.encode()).hexdigest()
