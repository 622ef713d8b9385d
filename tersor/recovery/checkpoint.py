"""The state of a training in one file, whole or not at all; a file that is damaged or of another training is not there.

It is written and read a tensor at a time: with the state of an optimizer it is several times as large as the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.store import cache
from tersor.store.files import atomic_write

_KEY = "training"


def save(path: Path, tensors: Mapping[str, Tensor], values: Any) -> None:
    """Write a checkpoint. Raises `StorageError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, cache.packed(_KEY, tensors, values))


def load(path: Path, shapes: Mapping[str, Sequence[int]]) -> tuple[Mapping[str, Tensor], Any] | None:
    """(tensors, values) of a checkpoint whose parameters have these shapes."""
    try:
        with path.open("rb") as file:
            entry = cache.read(file, os.fstat(file.fileno()).st_size, _KEY)
    except Exception:  # whatever a damaged file leads to
        return None
    tensors = {name: entry.tensors[name] for name in entry.tensors}
    found = {name.partition("/")[2]: tuple(t.shape) for name, t in tensors.items() if name.startswith("parameter/")}
    return (tensors, entry.values) if found == {name: tuple(shape) for name, shape in shapes.items()} else None


def owner(key: str) -> str:
    """The parameter that a tensor of a checkpoint belongs to."""
    room, _, name = key.partition("/")
    if room == "best":
        return owner(name)
    return name.partition("/")[2] if room == "optimiser" else name
