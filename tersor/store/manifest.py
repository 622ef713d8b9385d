"""The manifest: what an artifact consists of, and what is claimed of it (docs/manifest.md).

`seal` writes `manifest.json` last; `check` refuses a folder in which anything differs from it. The manifest has
exactly one spelling (sorted keys, one space of indent, a newline at the end), so that even a changed blank is a change.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tersor import foreign
from tersor.errors import ArtifactError
from tersor.measuring.machine import machine, versions

NAME = "manifest.json"
MARK = "tersor.json"
SCHEMA = 1
_MARK = "tersor"
_LARGEST = 64 << 20
"""Bytes of a manifest that are read at most."""

_RESERVED = ("schema", "files", "sha256", "created", "machine", "versions")


@dataclass(frozen=True)
class File:
    """One file of the artifact."""

    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """A manifest that was checked. `files` by path within the folder (always with "/"), `fields` what `seal` was
    given.
    """

    files: Mapping[str, File]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    fields: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.files.values())

    def section(self, name: str, *wanted: str) -> Mapping[str, Any]:
        """The field `name`, a table in which the fields `wanted` stand. Raises `ArtifactError` where it is none."""
        found = self.fields.get(name)
        if not isinstance(found, Mapping):
            raise ArtifactError(
                f"The manifest has no section '{name}': it is not of a compressed model, or was changed."
            )
        if lacking := [field for field in wanted if field not in found]:
            raise ArtifactError(f"The manifest's section '{name}' has no {', '.join(lacking)}; compress again.")
        return found


def seal(folder: Path, fields: Mapping[str, Any]) -> Manifest:
    """Write the manifest of everything that is in `folder`; `fields` are JSON and must hold finite numbers only."""
    clash = [key for key in fields if key in _RESERVED]
    if clash:
        raise ValueError(f"The manifest writes {clash} itself; the fields must not hold these names.")
    (folder / NAME).unlink(missing_ok=True)
    files = {name: {"sha256": _sha256(folder / name, size), "nbytes": size} for name, size in _walk(folder).items()}
    content: dict[str, Any] = {
        **fields,
        "schema": {"name": _MARK, "version": SCHEMA},
        "files": files,
        "machine": machine(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    data = _spelled(content | {"sha256": _own_hash(content)})
    (folder / NAME).write_bytes(data)
    return _manifest(_parse(data, folder), folder)


def check(folder: Path) -> Manifest:
    """The manifest, after every file was found to be as it says. Raises `ArtifactError` that names the first
    difference.

    Sizes are compared before any content is read; only the names found in the folder are ever opened.
    """
    manifest = read(folder)
    present = _walk(folder)
    present.pop(NAME, None)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise _damaged(folder, f"{name} is missing")
    for name in sorted(present.keys() - manifest.files.keys()):
        raise _damaged(folder, f"{name} is not in its manifest")
    for name, file in manifest.files.items():
        if present[name] != file.nbytes:
            raise _damaged(folder, f"{name} has {present[name]} bytes and its manifest says {file.nbytes}")
    for name, file in manifest.files.items():
        if _sha256(folder / name, file.nbytes) != file.sha256:
            raise _damaged(folder, f"the content of {name} has changed")
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest alone: its own checksum is verified, the files are not. Raises `ArtifactError`."""
    folder = Path(os.path.realpath(folder))
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that was written by compress.")
    path = folder / NAME
    try:
        size = os.lstat(path).st_size
        if size > _LARGEST:
            raise _damaged(folder, f"{NAME} has {size} bytes, more than a manifest may have ({_LARGEST})")
        data = _content(path, size)
    except FileNotFoundError:
        raise ArtifactError(f"{folder} holds no {NAME}: it is not an artifact, or it was damaged.") from None
    content = _parse(data, folder)
    own = content.pop("sha256", None)
    if own != _own_hash(content):
        raise _damaged(folder, f"{NAME} does not match its own checksum")
    return _manifest(content | {"sha256": own}, folder)


def not_ours(folder: Path) -> str | None:
    """Why a folder may not be replaced: it is no artifact, or it holds files that its manifest does not list."""
    try:
        listed = read(folder).files.keys() | {NAME}
        present = _walk(Path(os.path.realpath(folder))).keys()
    except ArtifactError as cause:
        return f"it is not empty and is no artifact of Tersor ({str(cause).rstrip('.')})."
    extra = sorted(present - listed)
    return f"it also holds {', '.join(extra[:3])}, which the artifact does not list." if extra else None


def mark(folder: Path) -> None:
    """Write what is in `folder` into a file there, by which the folder is known again (`unmarked`): the same for the same."""
    (folder / MARK).unlink(missing_ok=True)
    files = {name: {"sha256": _sha256(folder / name, size), "nbytes": size} for name, size in _walk(folder).items()}
    (folder / MARK).write_bytes(_spelled({"schema": {"name": _MARK, "version": SCHEMA}, "files": files}))


def unmarked(folder: Path) -> str | None:
    """Why a folder may not be replaced: it bears no mark, or anything in it is not as it was when it was marked."""
    folder = Path(os.path.realpath(folder))
    try:
        size = os.lstat(folder / MARK).st_size
        files = _parse(_content(folder / MARK, min(size, _LARGEST)), folder, MARK)["files"]
        listed = {str(name): (each["sha256"], each["nbytes"]) for name, each in files.items()}
        present = {name: size for name, size in _walk(folder).items() if name != MARK}
        changed = sorted(listed.keys() ^ present.keys()) or [
            name for name, size in present.items() if listed[name] != (_sha256(folder / name, size), size)
        ]
    except Exception as cause:  # no mark, or what somebody made of it
        return f"it is not empty, and no {MARK} says that Tersor wrote it ({foreign.said(cause)})."
    return f"it was changed since Tersor wrote it ({', '.join(changed[:3])})." if changed else None


def other_cpu(manifest: Manifest) -> str | None:
    """A warning where this machine is not the one that the figures were measured on, else None."""
    here, there = machine(), manifest.machine
    differences = []
    if here["cpu"] != there.get("cpu"):
        differences.append(f"the processor is {here['cpu']} instead of {there.get('cpu')}")
    lost = [f for f in there.get("flags", []) if f not in here["flags"]]
    if lost:
        differences.append(f"it lacks {', '.join(lost)}")
    if here["cores"] != there.get("cores"):
        differences.append(f"{here['cores']} cores are usable instead of {there.get('cores')}")
    if not differences:
        return None
    return (
        f"This is not the machine on which the artifact was measured: {'; '.join(differences)}. Measure again with `tersor "
        "benchmark`."
    )


def _walk(folder: Path) -> dict[str, int]:
    """Size of every file by its path. Raises `ArtifactError` at anything that is no plain file and at empty folders."""
    found: dict[str, int] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            seen = os.lstat(path)
            inside = path.relative_to(folder).as_posix()
            if stat.S_ISREG(seen.st_mode):
                found[inside] = seen.st_size
            elif not stat.S_ISDIR(seen.st_mode):
                raise _damaged(folder, f"{inside} is a link or a device, and an artifact holds plain files only")
        if not folders and not files and Path(parent) != folder:
            raise _damaged(folder, f"the empty folder {Path(parent).relative_to(folder).as_posix()} is not part of it")
    return found


def _sha256(path: Path, size: int) -> str:
    digest, left = hashlib.sha256(), size
    with _opened(path) as file:
        while block := file.read(1 << 20):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
    return digest.hexdigest() if left == 0 else ""


def _content(path: Path, size: int) -> bytes:
    with _opened(path) as file:
        return file.read(size + 1)


def _opened(path: Path) -> Any:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        raise ArtifactError(f"{path} cannot be read: {cause.strerror}. Restore it, or compress again.") from cause
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a plain file.")
    return os.fdopen(descriptor, "rb")


def _parse(data: bytes, folder: Path, name: str = NAME) -> dict[str, Any]:
    try:
        content = foreign.strict_json(data)
        spelled = _spelled(content)
    except (ValueError, RecursionError) as cause:
        raise _damaged(folder, f"{name} cannot be read ({cause})") from cause
    if not isinstance(content, dict):
        raise _damaged(folder, f"{name} is not an object")
    schema = content.get("schema")
    if not isinstance(schema, dict) or schema.get("name") != _MARK:
        raise _damaged(folder, f"{name} is not a manifest of Tersor")
    if schema.get("version") != SCHEMA:
        raise ArtifactError(
            f"{folder} has a manifest of version {schema.get('version')!r} and this Tersor reads version {SCHEMA}; "
            "use the Tersor that wrote it."
        )
    if spelled != data:
        raise _damaged(folder, f"{name} is not spelled as it was written")
    return content


def _manifest(content: dict[str, Any], folder: Path) -> Manifest:
    try:
        files = {name: File(entry["sha256"], entry["nbytes"]) for name, entry in content["files"].items()}
        kept = {key: value for key, value in content.items() if key not in _RESERVED}
        manifest = Manifest(files, content["machine"], content["versions"], content["created"], kept)
    except (KeyError, TypeError, AttributeError) as cause:
        raise _damaged(folder, f"{NAME} lacks a field ({cause})") from cause
    flags = manifest.machine.get("flags", []) if isinstance(manifest.machine, dict) else None
    if not isinstance(flags, list) or not isinstance(manifest.versions, dict) or not isinstance(manifest.created, str):
        raise _damaged(folder, f"{NAME} says nothing of the machine or the versions it was made with")
    for name, file in files.items():
        parts = name.split("/")
        if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise _damaged(folder, f"{NAME} lists {name!r}, which is no path inside the folder")
        if type(file.nbytes) is not int or file.nbytes < 0 or not isinstance(file.sha256, str):
            raise _damaged(folder, f"{NAME} lists no size or checksum for {name}")
    return manifest


def _spelled(content: Any) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _own_hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _damaged(folder: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{folder} does not match its manifest: {what}. Restore it, or compress again.")
