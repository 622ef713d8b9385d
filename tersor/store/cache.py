"""Results that cost time, kept by the hash of what they depend on. Safe formats only; a damaged entry is not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tersor.errors import ArtifactError, StorageError
from tersor.store.files import atomic_write
from tersor.store.weights import metadata

_SUFFIX = ".safetensors"
_MARK = "tersor-cache"


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
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return hashlib.sha256(save(whole)).hexdigest()


@cache
def code() -> str:
    """The sha256 of Tersor's own source: what another state of it computed is another result."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def default_folder() -> Path:
    """TERSOR_CACHE, else `tersor` in the user's cache folder."""
    chosen = os.environ.get("TERSOR_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tersor"


@dataclass(frozen=True)
class Cache:
    """A folder of entries that holds at most `limit` bytes; those not used for longest go first."""

    folder: Path
    limit: int = 4 << 30

    def get(self, key: str) -> Entry | None:
        """The entry, or None where there is none; an entry that does not match its own checksum is removed."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            entry = _unpacked(data, key)
        except (ArtifactError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            path.unlink(missing_ok=True)
            return None
        _touch(path)
        return entry

    def put(self, key: str, tensors: Mapping[str, Tensor] | None = None, values: Any = None) -> bool:
        """Keep an entry, whole or not at all. False where the disk would not have it: a cache is no reason to fail."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path(key), _packed(key, tensors or {}, values))
            self._make_room()
        except (StorageError, OSError):
            return False
        return True

    def _path(self, key: str) -> Path:
        if not (key.isascii() and key.isalnum()):
            raise ValueError(f"The key {key!r} is no file name; make it with cache.key.")
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self) -> None:
        entries = [(path, path.stat()) for path in self.folder.glob(f"*{_SUFFIX}")]
        total = sum(seen.st_size for _, seen in entries)
        for path, seen in sorted(entries, key=lambda entry: entry[1].st_mtime_ns)[:-1]:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= seen.st_size


def _packed(key: str, tensors: Mapping[str, Tensor], values: Any) -> bytes:
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(values, sort_keys=True)
    content = save(whole)
    return save(whole, {_MARK: key, "values": text, "sha256": _hash(content, text)})


def _unpacked(data: bytes, key: str) -> Entry:
    header = metadata(data, "the entry")
    tensors = load(data)
    if header[_MARK] != key or header["sha256"] != _hash(save(tensors), header["values"]):
        raise ValueError("the entry is another one, or was damaged")
    return Entry(tensors, json.loads(header["values"]))


def _hash(content: bytes, text: str) -> str:
    return hashlib.sha256(hashlib.sha256(content).digest() + text.encode()).hexdigest()


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:  # a cache on a read-only disk can still be read
        return
