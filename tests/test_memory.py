"""How much memory is free, as the system, the container and the user say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import InputError
from tersor.inputs import amounts
from tersor.memory import Room, free, held

GB = 10**9


def system(root: Path, available: int, group: str, mounts: str, files: dict[str, dict[str, str]]) -> Path:
    """A root with the files that a system would show: what is available, and the memory groups in `files` by folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {available // 1024 * 2} kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/self/mountinfo").write_text(mounts)
    for folder, content in files.items():
        (root / folder).mkdir(parents=True)
        for name, text in content.items():
            (root / folder / name).write_text(text)
    return root


SECOND = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def second(limit: str, used: int, cached: int = 0, high: str = "max") -> dict[str, str]:
    stat = f"anon 1\nactive_file {cached}\ninactive_file 0\n"
    return {"memory.max": limit, "memory.high": high, "memory.current": str(used), "memory.stat": stat}


def first(limit: int, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"cache 5\ntotal_active_file 0\ntotal_inactive_file {cached}\n"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    return dict(zip(names, (str(limit), str(used), stat), strict=True))


def test_without_groups_the_system_says(tmp_path: Path) -> None:
    assert free(system(tmp_path, 8 * GB, "", "", {})) == pytest.approx(8 * GB, abs=4096)


def test_a_container_leaves_its_limit_less_what_is_used_but_not_what_can_be_given_back(tmp_path: Path) -> None:
    groups = {"sys/fs/cgroup": second(str(2 * GB), int(1.5 * GB), cached=GB)}
    assert free(system(tmp_path, 8 * GB, "0::/\n", SECOND, groups)) == int(1.5 * GB)


@pytest.mark.parametrize("tight", ["sys/fs/cgroup/a", "sys/fs/cgroup/a/b", "sys/fs/cgroup/a/b/c"])
def test_the_tightest_of_nested_groups_counts(tmp_path: Path, tight: str) -> None:
    folders = ("sys/fs/cgroup/a", "sys/fs/cgroup/a/b", "sys/fs/cgroup/a/b/c")
    groups = {folder: second(str(GB if folder == tight else 4 * GB), GB // 2) for folder in folders}
    assert free(system(tmp_path, 8 * GB, "0::/a/b/c\n", SECOND, groups)) == GB // 2


def test_the_limit_where_a_group_is_slowed_counts_as_well(tmp_path: Path) -> None:
    groups = {"sys/fs/cgroup/a": second("max", 0, high=str(GB))}
    assert free(system(tmp_path, 8 * GB, "0::/a\n", SECOND, groups)) == GB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    groups = {"sys/fs/cgroup/a": second(str(GB), 2 * GB)}
    assert free(system(tmp_path, 8 * GB, "0::/a\n", SECOND, groups)) == 0


def test_version_one_and_a_path_that_begins_above_the_mount(tmp_path: Path) -> None:
    """In a container without a namespace of its own /proc tells the path outside, and the mount shows what is below it."""
    groups = {"sys/fs/cgroup/memory": first(3 * GB, 2 * GB, cached=GB // 2)}
    lines = "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    root = system(tmp_path, 8 * GB, lines, FIRST.format(root="/docker/abc"), groups)
    assert free(root) == int(1.5 * GB)


def test_version_one_without_a_limit(tmp_path: Path) -> None:
    groups = {"sys/fs/cgroup/memory/x": first(9223372036854771712, GB)}
    root = system(tmp_path, 8 * GB, "4:memory,hugetlb:/x\n", FIRST.format(root="/"), groups)
    assert free(root) == pytest.approx(8 * GB, abs=4096)


def test_files_that_cannot_be_read_are_no_limit(tmp_path: Path) -> None:
    groups = {"sys/fs/cgroup/a": {"memory.max": "soon", "memory.current": "", "memory.stat": "x\n"}}
    root = system(tmp_path, 8 * GB, "nonsense\n0::/a\n", SECOND + "also nonsense\n", groups)
    assert free(root) == pytest.approx(8 * GB, abs=4096)


def test_the_limit_of_the_shell_counts() -> None:
    code = (
        "import resource; from tersor.memory import _named, free; from pathlib import Path\n"
        "used = _named(Path('/proc/self/status'))['VmSize']\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2); print(free())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert int(answer.stdout) <= 64 << 20


def test_a_limit_of_the_users_counts_what_is_held_already() -> None:
    assert Room(held() + GB // 100).free <= GB // 100
    assert Room(1).free == 0
    assert Room().free == pytest.approx(free(), rel=0.2)


@pytest.mark.parametrize(("text", "value"), [("2GB", 2 * GB), ("1.5 GiB", 3 << 29), ("800mb", 8 * 10**8), (4096, 4096)])
def test_sizes(text: str | int, value: int) -> None:
    assert amounts.nbytes(text) == value


@pytest.mark.parametrize("text", ["", "much", "2 parsecs", "-1GB", "0", "nan GB", "1e3"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="no size above zero; write 2GB or 800MB"):
        amounts.nbytes(text)


def test_what_cannot_be_kept_is_said_before_any_work() -> None:
    stages: list[str] = []
    net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    with pytest.raises(InputError) as raised:
        tersor.prune(
            (net, torch.randn(2, 512)),
            [torch.randn(8, 512)],
            weights="50%",
            metric="cosine",
            memory_limit=held() + (50 << 20),
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == ["reading the model"]
    said = str(raised.value)
    assert "1 MB of weights" in said
    assert "the memory limit leaves" in said
    assert "Allow at least" in said
