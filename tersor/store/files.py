"""Folders and files that are replaced whole or not at all.

A folder is written aside (`.NAME.tersor-XXXX` next to `NAME`), flushed, and exchanged into place in one system call.
Where the system has no exchange, a journal says what was under way and `repair` finishes it. The writer holds a lock
on the folder it writes, which ends with its process; a folder aside that nobody locks is what a killed process left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tersor.errors import InputError, StorageError
from tersor.scratch import remove_abandoned
from tersor.store.manifest import not_ours

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_ASIDE = ".tersor-"
_JOURNAL = ".tersor.journal-"
_FILE_ASIDE = re.compile(r"\..+" + re.escape(_ASIDE) + "[0-9a-f]{8}")
_FULL = 1 << 20
"""Fewer free bytes than this after a failure: the disk is full, whatever error the writing library chose to raise."""

Owned = Callable[[Path], str | None]
"""Says why an existing folder may not be replaced, or None."""


@contextmanager
def staging(out: Path, refuse: Owned = not_ours) -> Iterator[Path]:
    """A fresh, empty folder that takes the place of `out` when the block ends without an exception.

    Until then `out` is untouched, and after an exception too. `refuse(out)` is asked before and after whether a
    non-empty `out` may be replaced; by default only an artifact may, with no file of the user's in it. Raises
    `StorageError` when the disk is full or read-only or `out` is not ours.
    """
    out = Path(os.path.realpath(out))
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(out, refuse)
        repair(out)
        clean(out)
        folder, lock = _fresh(out)
    try:
        with _disk_errors(out, _DISK), _still_there(folder):
            yield folder
        with _disk_errors(out):
            flush(folder)
            _check_replaceable(out, refuse)
            _put(folder, out)
    finally:
        # After an exchange this is the old folder, after a failure the new one; after a plain rename nothing.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def refuse_folder(out: Path, refuse: Owned = not_ours) -> None:
    """Raise `StorageError` where `staging(out, refuse)` would, before there is anything to write."""
    out = Path(os.path.realpath(out))
    with _disk_errors(out):
        _check_owned(out, refuse)
        writable(out)


def writable(out: Path) -> None:
    """Raise `OSError` where `out` cannot be made: what is above it is a file, read-only, or not this user's."""
    above = next((parent for parent in out.parents if parent.exists()), out)
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(above))
    with suppress(FileNotFoundError):
        os.lstat(above / _aside(out).name)  # which is longer than the name itself, and may be too long
    with tempfile.TemporaryFile(dir=above):  # permissions alone do not tell
        return


def refuse_unwritable(out: Path) -> None:
    """Raise `StorageError` where no file can be made at `out`, before there is anything to write."""
    out = Path(os.path.realpath(out))
    with _disk_errors(out):
        writable(out)


def refuse_file(out: Path, endings: Collection[str]) -> None:
    """Raise an error where no file can be written to `out`, before there is anything to write; `InputError` where its name
    ends in none of `endings`."""
    out = Path(os.path.realpath(out))
    if out.is_dir():
        raise StorageError(f"{out} is a folder, and a file was to be written there; choose another name.")
    if out.suffix not in endings:
        raise InputError(
            f"The file {out.name} ends in {out.suffix or 'nothing'}; wanted {' or '.join(endings)}, which names the format."
        )
    refuse_unwritable(out)


def atomic_write(path: Path, data: bytes | memoryview | Iterable[bytes | memoryview]) -> None:
    """Write a file that holds either its old content or `data`, which may come in pieces, whenever the process is
    killed. Raises `StorageError`.
    """
    path = Path(os.path.realpath(path))
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_aside(path):
            if left.is_file():
                remove_abandoned(left)
        aside, file = _fresh_file(path)
        try:
            with file:
                for piece in [data] if isinstance(data, bytes | memoryview) else data:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                os.replace(aside, path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Remove what `atomic_write` left aside in a folder where processes were killed."""
    for left in folder.glob(f".*{_ASIDE}*"):
        if _FILE_ASIDE.fullmatch(left.name) and left.is_file():
            remove_abandoned(left)


def _fresh_file(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked for as long as it is open."""
    while True:
        aside = _aside(path)
        file = open(aside, "xb")  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            if cause.errno == errno.EWOULDBLOCK:  # another process took it for a leftover before it was locked
                file.close()
                continue
        if aside.exists():
            return aside, file
        file.close()


def refuse_foreign(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise `StorageError` where something stands at `path` that is no file that Tersor wrote, as `is_ours` can tell; an empty
    file is nobody's. A name typed wrong must cost nobody a file.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise StorageError(f"{path} is a folder, and a file was to be written there; choose another name.")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or is_ours(path))):
        raise StorageError(
            f"{path} exists and Tersor did not write it, so it is not overwritten; choose another name, or move it away."
        )


def repair(out: Path) -> None:
    """Finish a replacement that a kill interrupted between its two renames (only where there is no atomic exchange)."""
    out = Path(os.path.realpath(out))
    if not _journals(out):
        return
    with _disk_errors(out), _locked(out.parent):
        for journal in _journals(out):
            new = out.with_name(journal.name.replace(_JOURNAL, _ASIDE))
            if new.is_dir() and not out.exists():
                os.rename(new, out)
                _sync(out.parent)
            journal.unlink(missing_ok=True)


def clean(out: Path) -> None:
    """Remove what killed processes left beside `out`: what was written aside and no living process has locked."""
    left_over = _left_aside(out)
    if not left_over:
        return
    with _locked(out.parent):
        if _journals(out):
            return
        for left in left_over:
            _remove_unlocked(left)


def _remove_unlocked(left: Path) -> None:
    try:
        lock = _lock(left, needed=True)
    except OSError:  # somebody writes it or removed it just now, or it is no folder
        return
    try:
        shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(lock)


def flush(folder: Path) -> None:
    """fsync every file and folder under `folder`, and `folder`."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                _sync(Path(path))
        _sync(Path(parent))


def _put(folder: Path, out: Path) -> None:
    """Make `folder` be `out`; where `out` was something, `folder` is that afterwards."""
    with _locked(out.parent):
        try:
            os.rename(folder, out)  # nothing there, or an empty folder
        except OSError as cause:
            if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not _exchange(folder, out):
                _replace_by_journal(folder, out)
        _sync(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)  # glibc before 2.28 has none
    if renameat2 is None:
        return False
    if renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _replace_by_journal(folder: Path, out: Path) -> None:
    """Two renames; between them the journal's name says which folder is to become `out`."""
    journal = out.with_name(folder.name.replace(_ASIDE, _JOURNAL))
    old = _aside(out)
    journal.touch(exist_ok=False)
    _sync(out.parent)
    os.rename(out, old)
    try:
        os.rename(folder, out)
    except OSError:
        os.rename(old, out)
        raise
    finally:
        _sync(out.parent)
        journal.unlink(missing_ok=True)
    os.rename(old, folder)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{_ASIDE}{secrets.token_hex(4)}")


def _beside(path: Path, mark: str) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.name)}{mark}*"))


def _left_aside(path: Path) -> list[Path]:
    """What was written aside for `path`; not what merely is called like it."""
    ours = re.compile(re.escape(f".{path.name}{_ASIDE}") + "[0-9a-f]{8}")
    return [each for each in _beside(path, _ASIDE) if ours.fullmatch(each.name)]


def _journals(out: Path) -> list[Path]:
    return _beside(out, _JOURNAL)


def _fresh(out: Path) -> tuple[Path, int]:
    """A new folder beside `out` and the descriptor that locks it."""
    while True:
        folder = _aside(out)
        folder.mkdir()
        try:
            lock = _lock(folder)
        except OSError as cause:  # another process took it for a leftover before it was locked
            if cause.errno in (errno.EWOULDBLOCK, errno.ENOENT):
                continue
            raise
        if folder.exists():
            return folder, lock
        os.close(lock)


def _lock(folder: Path, needed: bool = False) -> int:
    """A descriptor that locks `folder` until it is closed; without a lock where the file system has none, unless
    `needed`.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        if needed or cause.errno not in (errno.ENOTSUP, errno.EBADF, errno.ENOLCK):
            os.close(descriptor)
            raise
    return descriptor


@contextmanager
def _locked(parent: Path, patience: float = 30.0) -> Iterator[None]:
    """One replacement in `parent` at a time."""
    end = time.monotonic() + patience
    while True:
        try:
            descriptor = _lock(parent)
            break
        except OSError as cause:
            if cause.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > end:
                raise StorageError(f"{parent} is in use by another program; try again when it has ended.") from cause
            time.sleep(0.01)
    try:
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _check_replaceable(out: Path, refuse: Owned) -> None:
    """Raise `StorageError` where `out` is not ours; waits for a replacement under way, which may have `out` in hand."""
    with _locked(out.parent):
        _check_owned(out, refuse)


def _check_owned(out: Path, refuse: Owned) -> None:
    if not out.exists():
        return
    if os.path.ismount(out):  # nothing can be exchanged with it
        raise StorageError(f"{out} cannot be written: {_WHY[errno.EXDEV]} Nothing that was there has changed.")
    if not out.is_dir():
        raise StorageError(f"{out} is a file, and a folder was to be written there; choose another name.")
    if any(out.iterdir()):
        why = refuse(out)
        if why is not None:
            raise StorageError(f"{out} is not replaced: {why} Choose another folder, or move this one away.")


@contextmanager
def _disk_errors(out: Path, numbers: Collection[int] | None = None) -> Iterator[None]:
    """What goes wrong with the disk, as a `StorageError` of one sentence; only for these `numbers`, where given."""
    try:
        yield
    except OSError as cause:
        why = _WHY.get(cause.errno or 0)
        if why is None or (numbers is not None and cause.errno not in numbers):
            raise
        raise StorageError(f"{out} cannot be written: {why} Nothing that was there has changed.") from cause
    except RuntimeError as cause:  # torch and OpenVINO raise these when a write fails
        if not out.parent.exists() or shutil.disk_usage(out.parent).free > _FULL:
            raise
        raise StorageError(
            f"{out} cannot be written: {_WHY[errno.ENOSPC]} Nothing that was there has changed."
        ) from cause


@contextmanager
def _still_there(folder: Path) -> Iterator[None]:
    """That `folder` is removed meanwhile, as a `StorageError`."""
    try:
        yield
    except FileNotFoundError as cause:
        if folder.exists():
            raise
        raise StorageError(f"{folder.parent} was removed or renamed while it was written to; start again.") from cause


_WHY = {
    errno.ENOSPC: "the disk is full; free some space or choose another disk.",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another disk.",
    errno.EFBIG: "a file would be larger than is allowed here; choose another disk.",
    errno.EROFS: "the disk is read-only; choose another folder.",
    errno.EACCES: "the folder may not be written by this user; choose another folder.",
    errno.EPERM: "the folder may not be changed by this user; choose another folder.",
    errno.EIO: "the disk reports an error; check it, or choose another.",
    errno.EBUSY: "the folder is in use, perhaps as a mount point; choose a folder inside it.",
    errno.EXDEV: "it is a mount point; choose a folder inside it.",
    errno.ENOENT: "the folder cannot be made there; choose another folder.",
    errno.ENOTDIR: "a part of its path is a file; choose another folder.",
    errno.EEXIST: "a part of its path is a file; choose another folder.",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one.",
}

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What only the disk can cause, whoever was writing."""
