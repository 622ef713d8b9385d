"""Read an `.npz` of arrays: sizes are checked before memory is taken, and nothing in it can run code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from tersor import foreign
from tersor.errors import DataError
from tersor.memory import CONTAINER, Room


def read(path: Path, room: Room = CONTAINER) -> dict[str, np.ndarray]:
    """The arrays of `path` by name. Raises `DataError` where it is missing, damaged, too large or holds objects."""
    if not path.is_file():
        raise DataError(f"There is no file '{path}'.")
    with foreign.reading(f"'{path}'", DataError, "write it with numpy.savez"):
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, str(path), room)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: native(arrays[name]) for name in arrays.files}


def native(array: np.ndarray) -> np.ndarray:
    """`array` in the byte order of this machine, which torch and the runtimes want; other machines write the other."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_sizes(archive: zipfile.ZipFile, where: str, room: Room) -> None:
    total = sum(member.file_size for member in archive.infolist())
    if total > room.free // 2:
        raise DataError(
            f"'{where}' holds {total / 1e9:.1f} GB of arrays, more than half of the free memory; give a part of it."
        )
    for member in archive.infolist():
        with archive.open(member) as content:
            declared = _declared(content, where, member.filename)
        if declared != member.file_size:
            raise DataError(
                f"'{where}': '{member.filename}' declares {declared} bytes and holds {member.file_size}; "
                "the file is damaged."
            )


def _declared(content: IO[bytes], where: str, name: str) -> int:
    version = np.lib.format.read_magic(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise DataError(f"'{where}': '{name}' has the format version {version}; write it with numpy.savez.")
    shape, _, dtype = read_header(content)
    if dtype.hasobject:
        raise DataError(f"'{where}': '{name}' holds Python objects, which could run code; save numbers only.")
    count = 1
    for size in shape:
        count *= int(size)
    return int(content.tell()) + count * dtype.itemsize
