"""Statistics of large models, of which only what is worked on is in memory.

Gram matrices alone may be several times as large as the model that they were measured on. What goes beyond a fixed amount
lies in files without a name, which end with this process however it ends; the system brings back what is read, and what
was read before is let go.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tersor.memory import is_memory, trim

RESIDENT = 256 << 20
"""Bytes of a shelf that stay in memory."""
_LEAST = 1 << 16  # bytes, below which a tensor is worth no file
T = TypeVar("T")


class Shelf(MutableMapping[str, T], Generic[T]):
    """A dictionary of tensors, or of dataclasses that hold some; what is more than `resident` bytes is on disk.

    Values are exact, and as writable as any tensor. Where there is no room on the disk, they stay in memory.
    """

    def __init__(self, values: Mapping[str, T] | None = None, resident: int = RESIDENT):
        self._resident = resident
        self._values: dict[str, T] = {}
        self._maps: dict[str, list[mmap.mmap]] = {}
        self._held, self._read = 0, 0
        self.update(values or {})

    def copy(self) -> Shelf[T]:
        """The same values, on the same disk; what is put into one is not seen in the other."""
        other: Shelf[T] = Shelf(resident=self._resident)
        other._values, other._maps, other._held = dict(self._values), dict(self._maps), self._held
        return other

    def __setitem__(self, name: str, value: T) -> None:
        self.pop(name, None)
        size = _size(value)
        if self._held + size <= self._resident:
            self._held += size
            self._values[name] = value
            return
        maps: list[mmap.mmap] = []
        self._values[name] = _filed(value, maps)
        self._maps[name] = maps
        self._let_go(size)

    def __getitem__(self, name: str) -> T:
        value = self._values[name]
        if name in self._maps:
            self._let_go(_size(value))
        return value

    def __delitem__(self, name: str) -> None:
        value = self._values.pop(name)
        if name not in self._maps:
            self._held -= _size(value)
        self._maps.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _let_go(self, coming: int) -> None:
        """Give back the pages of what was read, before more is; whoever still reads it gets it from the disk again."""
        self._read += coming
        if self._read > self._resident:
            for each in (each for maps in self._maps.values() for each in maps):
                each.madvise(mmap.MADV_DONTNEED)
            trim()
            self._read = coming


def _filed(value: Any, maps: list[mmap.mmap]) -> Any:
    """The value with its large tensors on disk; their maps are added to `maps`."""
    if isinstance(value, Tensor):
        return _on_disk(value, maps)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: _on_disk(t, maps) for name, t in parts.items() if isinstance(t, Tensor)})
    return value


def _on_disk(tensor: Tensor, maps: list[mmap.mmap]) -> Tensor:
    size, folder = tensor.numel() * tensor.element_size(), _folder()
    if size < _LEAST or folder is None or sys.platform != "linux":
        return tensor
    try:
        with tempfile.TemporaryFile(prefix="tersor-", dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk is a signal at the first write
            mapped = mmap.mmap(file.fileno(), size)
    except OSError:  # the disk is full, or too many files are open
        return tensor
    maps.append(mapped)
    filed = torch.frombuffer(mapped, dtype=tensor.dtype).reshape(tensor.shape)
    filed.copy_(tensor.detach())
    mapped.madvise(mmap.MADV_DONTNEED)
    return filed


def _folder() -> Path | None:
    """Where files go that are no memory themselves; None where there is no such place."""
    return next((path for path in (Path(tempfile.gettempdir()), Path("/var/tmp")) if not is_memory(path)), None)


def _size(value: Any) -> int:
    tensors = [value] if isinstance(value, Tensor) else []
    if is_dataclass(value) and not isinstance(value, type):
        tensors = [t for f in fields(value) if isinstance(t := getattr(value, f.name), Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
