"""Results that cost time, kept by the hash of what they depend on. Safe formats only; a damaged entry is not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tersor.errors import StorageError
from tersor.maths.bits import raw
from tersor.shelf import Shelf
from tersor.store.files import atomic_write, forget

_SUFFIX = ".safetensors"
_TRAINING = ".training"  # the state of one on its way
_ENTRY = re.compile(
    "[0-9a-f]{64}(" + re.escape(_SUFFIX) + "|" + re.escape(_TRAINING) + ")"
)  # nothing else here is ours
_MARK = "tersor-cache"
_LARGEST_HEADER = 100 << 20
_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.complex128: "C128",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_TYPES = {word: kind for kind, word in _WORDS.items()}


COMPUTING = ("criteria", "forms", "graph", "losses", "maths", "planners", "recovery", "rewrites", "techniques")
"""Rooms whose source is part of every key."""
ELSEWHERE = (
    "__init__.py",
    "__main__.py",
    "benchmarking.py",
    "deadline.py",
    "delivery.py",
    "errors.py",
    "inspection.py",
    "limits.py",
    "memory.py",
    "pipeline.py",
    "report.py",
    "scratch.py",
    "search.py",
    "shelf.py",
    "summary.py",
    "target.py",
    "trials.py",
    "units.py",
)
"""Files beside them whose source is not."""


@dataclass(frozen=True)
class Entry:
    """What was kept: tensors by name, and JSON values."""

    tensors: Mapping[str, Tensor]
    values: Any


def key(*parts: Any) -> str:
    """The sha256 of JSON `parts` (digests of data and model, settings, versions): everything a result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors by name."""
    found = hashlib.sha256(json.dumps(_header(tensors)).encode())
    for name in tensors:
        found.update(_raw(tensors[name]))
    return found.hexdigest()


@cache
def code() -> str:
    """The sha256 of the source of what computes: another state of it has other results. What asks, shows, times, exports or
    delivers is not in it: a change there loses nothing that was kept."""
    whole, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for name in COMPUTING for path in (whole / name).rglob("*.py")):
        found.update(path.read_bytes())
    for path in sorted(whole.glob("*.py")):
        if path.name not in ELSEWHERE:
            found.update(path.read_bytes())
    return found.hexdigest()


def default_folder() -> Path:
    """TERSOR_CACHE, else `tersor` in the user's cache folder; a place that nothing can be in for a user without a home."""
    chosen = os.environ.get("TERSOR_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tersor"
    except RuntimeError:  # a container's user has no name
        return Path(os.devnull) / "tersor"


@dataclass(frozen=True)
class Cache:
    """A folder of entries that holds at most `limit` bytes; those not used for longest go first."""

    folder: Path
    limit: int = 4 << 30

    def get(self, key: str) -> Entry | None:
        """The entry, or None where there is none; an entry that does not match its own checksum is removed."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                entry = read(file, os.fstat(file.fileno()).st_size, key)
        except OSError:
            return None
        except Exception:  # whatever json and a damaged entry lead to
            _drop(path)
            return None
        _touch(path)
        return entry

    def checkpoint(self, key: str) -> Path:
        """Where the state of a training goes that may have to go on. It counts, and is dropped, as entries are."""
        return self._path(key).with_suffix(_TRAINING)

    def tidy(self) -> None:
        """Remove what killed processes left aside, and what is more than the limit."""
        try:
            forget(self.folder)
            self._make_room()
        except OSError:  # not there, no folder, or not ours: it is only a cache
            return

    def put(self, key: str, tensors: Mapping[str, Tensor] | None = None, values: Any = None) -> bool:
        """Keep an entry, whole or not at all. False where the disk would not have it: a cache is no reason to fail."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path(key), packed(key, tensors or {}, values))
            self._make_room()
        except (StorageError, OSError) as cause:
            warnings.warn(
                f"The cache {self.folder} cannot be written ({_short(cause)}): what is computed now will have to be computed "
                "again next time. Set TERSOR_CACHE to another folder.",
                stacklevel=1,
            )
            return False
        return True

    def _path(self, key: str) -> Path:
        if not (key.isascii() and key.isalnum()):
            raise ValueError(f"The key {key!r} is no file name; make it with cache.key.")
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self) -> None:
        found = (path for path in self.folder.iterdir() if _ENTRY.fullmatch(path.name))
        entries = [(path, seen) for path in found if (seen := _seen(path)) is not None]
        total = sum(seen.st_size for _, seen in entries)
        for path, seen in sorted(entries, key=lambda entry: entry[1].st_mtime_ns)[:-1]:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= seen.st_size


def _seen(path: Path) -> os.stat_result | None:
    """What the disk says of a file; None where another process removed it just now."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def packed(key: str, tensors: Mapping[str, Tensor], values: Any) -> Iterator[bytes | memoryview]:
    """The file of an entry, in pieces: a safetensors file that is never in memory as a whole."""
    text, parts = json.dumps(values, sort_keys=True), _header(tensors)
    found = hashlib.sha256(f"{key} {text} {json.dumps(parts, sort_keys=True)}".encode())
    for name in tensors:
        found.update(_raw(tensors[name]))
    metadata = {_MARK: key, "values": text, "sha256": found.hexdigest()}
    header = json.dumps({"__metadata__": metadata, **parts}).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    for name in tensors:
        yield _raw(tensors[name])


def _header(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What safetensors says of each tensor: its type, its shape and where it lies."""
    found: dict[str, dict[str, Any]] = {}
    at = 0
    for name in tensors:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        found[name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    return found


def read(file: IO[bytes], size: int, key: str) -> Entry:
    """The entry in a file of `size` bytes. Raises `ValueError`, or what a header of another form leads to, where it is another
    one or was damaged."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError("the header is longer than the file")
    parts = json.loads(file.read(length))
    metadata = parts.pop("__metadata__")
    found = hashlib.sha256(f"{key} {metadata['values']} {json.dumps(parts, sort_keys=True)}".encode())
    tensors: Shelf[Tensor] = Shelf()
    at, left = 0, size - 8 - length
    for name, part in parts.items():
        kind, shape = _TYPES[part["dtype"]], [int(count) for count in part["shape"]]
        nbytes = prod(shape) * kind.itemsize
        if min(shape, default=0) < 0 or part["data_offsets"] != [at, at + nbytes] or at + nbytes > left:
            raise ValueError("a tensor does not lie where it should")
        tensor = torch.empty(shape, dtype=kind)
        place = _raw(tensor)
        if file.readinto(place) != nbytes:  # type: ignore[attr-defined]
            raise ValueError("the file is too short")
        found.update(place)
        tensors[name] = tensor
        at += nbytes
    if at != left or metadata[_MARK] != key or metadata["sha256"] != found.hexdigest():
        raise ValueError("the entry is another one, or was damaged")
    return Entry(tensors, json.loads(metadata["values"]))


def _raw(tensor: Tensor) -> memoryview:
    return raw(tensor.cpu()).numpy().data


def _short(cause: Exception) -> str:
    return str(cause.strerror if isinstance(cause, OSError) and cause.strerror else cause).rstrip(".")


def _drop(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a damaged entry on a read-only disk stays, and stays unread
        return


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # a cache on a read-only disk can still be read
        return
