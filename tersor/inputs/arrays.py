"""Read an `.npz` of arrays: sizes are checked before memory is taken, and nothing in it can run code."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from tersor import foreign
from tersor.errors import DataError
from tersor.memory import CONTAINER, Room

LARGE = 256 << 20
"""Bytes of arrays in one file, from which on not all of them are to be in memory at once."""
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether column by column, and type


def read(path: Path, room: Room = CONTAINER) -> dict[str, np.ndarray]:
    """The arrays of `path` by name. Raises `DataError` where it is missing, damaged, too large or holds objects."""
    if not path.is_file():
        raise DataError(f"There is no file '{path}'.")
    with foreign.reading(f"'{path}'", DataError, "write it with numpy.savez"):
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, str(path), room)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: native(arrays[name]) for name in arrays.files}


def in_parts(path: Path, items: int) -> Iterator[dict[str, np.ndarray]] | None:
    """The arrays of a large `path`, so many items at a time; None where it is not large, or its arrays are not of as many items
    each, one after the other in the file. Raises `DataError` as `read` does."""
    if not path.is_file():
        raise DataError(f"There is no file '{path}'.")
    with foreign.reading(f"'{path}'", DataError, "write it with numpy.savez"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) <= LARGE:
            return None
        _check_declared(archive, str(path))
        counts = {_header(archive, member)[0][:1] for member in members}
        columns = any(_header(archive, member)[1] for member in members)
    if len(counts) != 1 or counts == {()} or columns:
        return None
    return _parts(path, items)


def _parts(path: Path, items: int) -> Iterator[dict[str, np.ndarray]]:
    with foreign.reading(f"'{path}'", DataError, "write it with numpy.savez"), ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        found = []
        for member in archive.infolist():
            shape, _, dtype = _header(archive, member)
            content = stack.enter_context(archive.open(member))
            content.read(member.file_size - math.prod(shape) * dtype.itemsize)  # its own header
            found.append((member.filename.removesuffix(".npy"), content, shape, dtype))
        count = found[0][2][0]
        for start in range(0, count, items):
            part = {}
            for name, content, shape, dtype in found:
                taken = (min(items, count - start), *shape[1:])
                values = content.read(math.prod(taken) * dtype.itemsize)
                part[name] = native(np.frombuffer(values, dtype).reshape(taken))
            yield part
        for _, content, _, _ in found:
            content.read()  # whose end is where it is found out that the sum is another


def native(array: np.ndarray) -> np.ndarray:
    """`array` in the byte order of this machine, which torch and the runtimes want; other machines write the other."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_sizes(archive: zipfile.ZipFile, where: str, room: Room) -> None:
    total = sum(member.file_size for member in archive.infolist())
    if total > room.free // 2:
        raise DataError(
            f"'{where}' holds {total / 1e9:.1f} GB of arrays, more than half of the free memory; give a part of it."
        )
    _check_declared(archive, where)


def _check_declared(archive: zipfile.ZipFile, where: str) -> None:
    for member in archive.infolist():
        with archive.open(member) as content:
            declared = _declared(content, where, member.filename)
        if declared != member.file_size:
            raise DataError(
                f"'{where}': '{member.filename}' declares {declared} bytes and holds {member.file_size}; "
                "the file is damaged."
            )


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as content:
        return _read_header(content, str(archive.filename), member.filename)


def _declared(content: IO[bytes], where: str, name: str) -> int:
    shape, _, dtype = _read_header(content, where, name)
    return int(content.tell()) + math.prod(shape) * dtype.itemsize


def _read_header(content: IO[bytes], where: str, name: str) -> Header:
    version = np.lib.format.read_magic(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise DataError(f"'{where}': '{name}' has the format version {version}; write it with numpy.savez.")
    shape, columns, dtype = read_header(content)
    if dtype.hasobject:
        raise DataError(f"'{where}': '{name}' holds Python objects, which could run code; save numbers only.")
    return tuple(int(size) for size in shape), columns, dtype
