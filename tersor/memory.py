"""How much memory may be taken: what the system, the container and the user leave.

A container is killed without a word when it takes more than its cgroup has, whatever the machine still has; so every
limit above this process is asked, on each level of the hierarchy, in both versions of cgroups.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tersor.errors import InputError

LARGE = 100e6
"""Bytes of a model's file, above which no two copies should be in memory at once."""
_NONE = 1 << 60
"""What version 1 writes where there is no limit is as large as this, or larger."""
_AS_LARGE = 4
"""Times the weights of a model, that the work on it holds besides the model itself at some moment."""
_SMALL = 200 << 20
"""Bytes that a run needs for itself, however small the model is."""


@dataclass(frozen=True)
class Room:
    """What a run may hold. limit: bytes of this process and of those that it starts; None: what the container has."""

    limit: int | None = None

    @property
    def free(self) -> int:
        """Bytes that may still be taken at this moment."""
        there = free()
        return there if self.limit is None else max(0, min(there, self.limit - held()))

    @property
    def whole(self) -> int:
        """Bytes that may be held in all, what is held already included."""
        return self.free + held()

    def check(self, model: int) -> None:
        """Raises `InputError` where the work on a model of `model` bytes of weights would not fit."""
        needed, left = _SMALL + (_AS_LARGE - 1) * model, self.free
        if needed > left:
            whose = "the memory limit" if self.limit is not None else "the memory of this machine or container"
            raise InputError(
                f"The model has {written(model)} of weights, and working on it takes about {written(needed)} in addition to "
                f"the {written(held())} already in use; {whose} leaves {written(left)}. Allow at least "
                f"{written(held() + needed)}, or bring a smaller model."
            )


CONTAINER = Room()
"""No limit of the user's: what the system and the container have."""


def free(root: Path = Path("/")) -> int:
    """Bytes that this process can take before the system, its container or its own limit stops it.

    root: the folder that holds `proc` and, where mounts are named, all of them.
    """
    return max(0, min([_of_the_system(root), *_left_in_groups(root), *_left_to_the_process(root)]))


def held(process: int | str = "self", root: Path = Path("/")) -> int:
    """Bytes of memory that a process holds (0 where the system does not say, or it has ended)."""
    return _named(root / f"proc/{process}/status").get("VmRSS", 0)


def trim() -> None:
    """Give back to the system what was freed and is kept for later; the C library keeps a lot of it between large arrays."""
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if give_back is not None:
            give_back(0)


def is_memory(folder: Path, root: Path = Path("/")) -> bool:
    """Whether files in `folder` are themselves kept in memory."""
    real, kind, longest = Path(os.path.realpath(folder)), "", -1
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        places, kinds = before.split(), after.split()
        if len(places) > 4 and kinds and real.is_relative_to(places[4]) and len(places[4]) >= longest:
            kind, longest = kinds[0], len(places[4])
    return kind in ("tmpfs", "ramfs")


def _of_the_system(root: Path) -> int:
    """What is available, as far as the system says; half of all memory where it does not."""
    found = _named(root / "proc/meminfo").get("MemAvailable")
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2) if found is None else found


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group from this process upwards leaves; nothing for one without a limit."""
    for folder, second in _folders(root):
        limits = ("memory.max", "memory.high") if second else ("memory.limit_in_bytes",)
        limit = min((n for n in (_number(folder / name) for name in limits) if n is not None), default=_NONE)
        used = _number(folder / ("memory.current" if second else "memory.usage_in_bytes"))
        if limit < _NONE and used is not None:
            yield limit - max(0, used - _reclaimable(folder, second))


def _reclaimable(folder: Path, second: bool) -> int:
    """Bytes of files in memory, which are counted as used and go when memory is needed."""
    total = "" if second else "total_"
    seen = dict(line.split() for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
    return sum(int(seen.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))


def _folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """The folder of every memory group that this process is in, and of those above, and whether it is of version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        for mounted, at in _mounts(root, second):
            inside = Path(path)
            below = (
                inside.relative_to(mounted) if inside.is_relative_to(mounted) else Path()
            )  # else a container's own view
            folder = at / below
            for each in (folder, *folder.parents):
                if not each.is_relative_to(at):
                    break
                yield each, second


def _mounts(root: Path, second: bool) -> Iterator[tuple[Path, Path]]:
    """(path inside the hierarchy, folder) where memory groups of this version are mounted."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        places, kinds = before.split(), after.split()
        if len(places) < 5 or len(kinds) < 2:
            continue
        if kinds[0] == "cgroup2" if second else kinds[0] == "cgroup" and "memory" in kinds[-1].split(","):
            yield Path(places[3]), root / places[4].lstrip("/")


def _left_to_the_process(root: Path) -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    try:
        import resource
    except ImportError:  # there is none on Windows
        return
    seen = _named(root / "proc/self/status")
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY and used in seen:
            yield soft - seen[used]


def _named(path: Path) -> dict[str, int]:
    """The amounts in a file of `Name:  123 kB` lines, in bytes."""
    found = {}
    for line in _lines(path):
        name, _, amount = line.partition(":")
        words = amount.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            found[name] = int(words[0]) * 1024
    return found


def _number(path: Path) -> int | None:
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdecimal() else None  # "max": no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not this system, or not for us
        return []


def written(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
