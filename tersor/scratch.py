"""Folders for what is thrown away: gone when their program ends, and where it was killed, when the next one begins.

A folder is locked for as long as its program lives; the lock ends with the process, whatever ended it. A folder of ours that
nobody has locked is what a killed process left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.errors import StorageError

_PREFIX = "tersor-scratch-"
_OURS = re.compile(re.escape(_PREFIX) + "[0-9a-f]{16}")
_SPARE = 1 << 20  # bytes, for what nobody counted
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def scratch(needed: int = 0) -> Iterator[Path]:
    """An empty folder in TMPDIR, removed at the end. needed: bytes that will be written there, at least.

    Raises `StorageError` where there is no room or no such folder, before or meanwhile.
    """
    parent = temporary()
    sweep(parent)
    room(parent, needed)
    with full_disk(parent):
        folder, lock = _fresh(parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def temporary() -> Path:
    """The folder for intermediate files. Raises `StorageError` where there is none that can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as cause:  # also where all disks are full: it writes a file to see
        raise StorageError(
            "There is no folder for intermediate files: neither TMPDIR nor /tmp, /var/tmp or the current folder can be written "
            "to, or their disks are full. Set TMPDIR to a folder on a disk that has room."
        ) from cause


def sweep(parent: Path) -> None:
    """Remove the scratch folders of processes that are dead."""
    try:
        names = [name for name in os.listdir(parent) if _OURS.fullmatch(name)]
    except OSError:
        return
    for name in names:
        remove_abandoned(parent / name)


def remove_abandoned(left: Path) -> None:
    """Remove a file or folder of this user that no living process has locked; leave it where that cannot be known."""
    try:
        lock = locked(left)
    except OSError:  # somebody works there, or removed it just now
        return
    try:
        if os.fstat(lock).st_uid != os.getuid():
            return
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    except OSError:  # it may not be removed: it does no harm
        return
    finally:
        os.close(lock)


def locked(path: Path) -> int:
    """A descriptor that locks a file or folder until it is closed. Raises `OSError` where another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def room(folder: Path, needed: int) -> None:
    """Raises `StorageError` where the disk of `folder` has fewer bytes free than will be written."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # what is wrong with it will show
        return
    if free < needed + _SPARE:
        raise StorageError(
            f"{folder} has {_size(free)} free, and about {_size(needed + _SPARE)} are needed there for intermediate files; "
            "free some space, or set TMPDIR to a folder on a disk that has more."
        )


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """What a full or read-only disk causes meanwhile in `folder`, or that it goes, as a `StorageError`."""
    try:
        yield
    except FileNotFoundError as cause:
        if folder.exists():
            raise
        raise StorageError(f"{folder}, where intermediate files go, was removed meanwhile; start again.") from cause
    except OSError as cause:
        if cause.errno not in _FULL or (cause.filename is not None and not _inside(str(cause.filename), folder)):
            raise
        what = "is read-only" if cause.errno == errno.EROFS else "is full"
        raise StorageError(
            f"The disk of {folder}, where intermediate files go, {what}; free some space, or set TMPDIR to a folder on another "
            "disk."
        ) from cause


def _fresh(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        try:
            lock = locked(folder)
        except OSError as cause:
            if cause.errno in (errno.EWOULDBLOCK, errno.ENOENT):  # taken for abandoned before it was locked
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)  # a disk without locks: nothing is swept there
        if folder.exists():
            return folder, lock
        os.close(lock)


def _inside(path: str, folder: Path) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder))


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
