"""Statistics of large models, of which only what is worked on is in memory.

Gram matrices alone may be several times as large as the model that they were measured on. What goes beyond a fixed amount
lies in files without a name, which end with this process however it ends; the system brings back what is read, and what
was read before is let go.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tersor.errors import StorageError
from tersor.memory import is_memory, trim
from tersor.scratch import temporary

RESIDENT = 128 << 20
"""Bytes of a shelf that stay in memory."""
_LEAST = 1 << 16  # bytes, below which a tensor is worth no file
T = TypeVar("T")


class Shelf(MutableMapping[str, T], Generic[T]):
    """A dictionary of tensors, or of dataclasses that hold some; what is more than `resident` bytes is on disk.

    Values are exact, their axes lie in the order they had, and they are as writable as any tensor. Where there is no room on
    the disk, they stay in memory.
    """

    def __init__(self, values: Mapping[str, T] | None = None, resident: int = RESIDENT):
        self._resident = resident
        self._values: dict[str, T] = {}
        self._maps: dict[str, list[Tensor]] = {}
        self._held, self._read = 0, 0
        self.update(values or {})

    @property
    def held(self) -> int:
        """Bytes that are in memory for good."""
        return self._held

    @property
    def on_disk(self) -> bool:
        """Whether some values are."""
        return bool(self._maps)

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
        maps: list[Tensor] = []
        self._values[name] = _filed(value, maps)
        self._maps[name] = maps
        self._held += size - _size_of(maps)
        self._let_go(size)

    def __getitem__(self, name: str) -> T:
        value = self._values[name]
        if name in self._maps:
            self._let_go(_size(value))
        return value

    def __delitem__(self, name: str) -> None:
        value = self._values.pop(name)
        self._held -= _size(value) - _size_of(self._maps.pop(name, []))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _let_go(self, coming: int) -> None:
        """Give back the pages of what was read, before more is; whoever still reads it gets it from the disk again."""
        self._read += coming
        if self._read > self._resident:
            for each in (each for maps in self._maps.values() for each in maps):
                _release(each)
            trim()
            self._read = coming


def put_aside(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Move large tensors to the disk, in place and value for value. What is given lets go of what was read of them since.

    What is the same memory in the same shape stays so. Where there is no room on the disk, they stay in memory.
    """
    moved: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
    maps: list[Tensor] = []
    for tensor in tensors:
        same = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if same not in moved:
            moved[same] = _on_disk(tensor, maps)
        tensor.data = moved[same].data

    def let_go() -> None:
        for each in maps:
            _release(each)
        trim()

    let_go()
    return let_go


def _filed(value: Any, maps: list[Tensor]) -> Any:
    """The value with its large tensors on disk; their maps are added to `maps`."""
    if isinstance(value, Tensor):
        return _on_disk(value, maps)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{name: _on_disk(t, maps) for name, t in parts.items() if isinstance(t, Tensor)})
    return value


def _on_disk(tensor: Tensor, maps: list[Tensor]) -> Tensor:
    size, folder = tensor.numel() * tensor.element_size(), _folder()
    if size < _LEAST or folder is None or sys.platform != "linux":
        return tensor
    try:
        storage = _storage(folder, size)
    except (OSError, RuntimeError):  # the disk is full, or there are too many maps already
        return tensor
    layout = torch.empty_like(
        tensor, device="meta"
    )  # axes in the same order: a view is possible wherever it was before
    filed = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, layout.shape, layout.stride())
    filed.copy_(tensor.detach())
    maps.append(filed)
    _release(filed)
    return filed


def _storage(folder: Path, size: int) -> torch.UntypedStorage:
    """Memory that lies in a file, which never has a name where the system can do that: it goes when nobody holds the memory."""
    with tempfile.TemporaryFile(prefix="tersor-", dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # else a full disk is a signal at the first write
        return torch.UntypedStorage.from_file(f"/proc/self/fd/{file.fileno()}", True, size)  # type: ignore[return-value]


def _release(filed: Tensor) -> None:
    """Its pages leave this process' memory; what was written stays in the file."""
    ctypes.CDLL(None).madvise(
        ctypes.c_void_p(filed.data_ptr()), ctypes.c_size_t(filed.numel() * filed.element_size()), mmap.MADV_DONTNEED
    )


def _folder() -> Path | None:
    """Where files go that are no memory themselves; None where there is no such place."""
    with suppress(StorageError):
        return next((path for path in (temporary(), Path("/var/tmp")) if not is_memory(path)), None)
    return None


def _size_of(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _size(value: Any) -> int:
    tensors = [value] if isinstance(value, Tensor) else []
    if is_dataclass(value) and not isinstance(value, type):
        tensors = [t for f in fields(value) if isinstance(t := getattr(value, f.name), Tensor)]
    return _size_of(tensors)
