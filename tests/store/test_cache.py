"""The cache: what was put is got, damage is not, and the disk does not fill."""

from __future__ import annotations

import fcntl
import os
import random
import warnings
from pathlib import Path

import pytest
import torch
from kills import killed_before_event

import tersor
from tersor.store.cache import COMPUTING, ELSEWHERE, Cache, default_folder, key
from tersor.store.files import atomic_write


def filled(folder: Path) -> tuple[Cache, str]:
    cache, name = Cache(folder / "cache"), key("data", {"n": 3})
    assert cache.get(name) is None
    assert cache.put(name, {"gram": torch.randn(4, 4, dtype=torch.float64)}, {"items": 7, "names": ["a"]})
    return cache, name


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache, name = filled(tmp_path)
    entry = cache.get(name)
    assert entry is not None
    assert entry.values == {"items": 7, "names": ["a"]}
    assert entry.tensors["gram"].dtype == torch.float64
    assert cache.get(key("data", {"n": 4})) is None
    assert cache.put(name, None, 1)
    assert cache.get(name).values == 1  # type: ignore[union-attr]


def test_keys_see_their_parts() -> None:
    assert key("a", 1) == key("a", 1) != key("a", 2)
    assert key({"x": 1, "y": 2}) == key({"y": 2, "x": 1})
    with pytest.raises(ValueError, match="no file name"):
        Cache(Path("x")).get("../../etc/passwd")


def test_every_damage_is_a_miss(tmp_path: Path) -> None:
    cache, name = filled(tmp_path)
    path = next(cache.folder.iterdir())
    data, number = path.read_bytes(), random.Random(0)
    for i in range(300):
        bad = bytearray(data)
        if i % 3 == 0:
            bad = bad[: number.randrange(len(bad))]
        else:
            bad[number.randrange(len(bad))] ^= 1 << number.randrange(8)
        path.write_bytes(bad)
        assert cache.get(name) is None, f"damage {i} went unseen"
        assert not path.exists()
    path.write_bytes(data)
    assert cache.get(name) is not None
    os.rename(path, path.with_name(f"{key('other')}.safetensors"))
    assert cache.get(key("other")) is None


def test_the_oldest_go_when_it_is_full(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    names = [key(i) for i in range(6)]
    for i, name in enumerate(names):
        cache.put(name, {"t": torch.zeros(500)})
        path = tmp_path / f"{name}.safetensors"
        os.utime(path, (i, i)) if i < 3 else None
        if i == 2:
            cache.get(names[0])  # used just now
    left = [name for name in names if cache.get(name) is not None]
    assert names[0] in left
    assert names[5] in left
    assert names[1] not in left
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 10_000


def test_a_disk_that_refuses_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    assert not Cache(tmp_path / "file").put(key(1), None, 1)
    assert Cache(tmp_path / "file").get(key(1)) is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("TERSOR_CACHE", raising=False)
    assert default_folder() == Path("/somewhere/tersor")
    monkeypatch.setenv("TERSOR_CACHE", "/else")
    assert default_folder() == Path("/else")


def test_what_killed_writers_left_goes_and_what_is_written_stays(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    path = cache.folder / "a.safetensors"

    def write() -> None:
        atomic_write(path, bytes(1000))

    number = 0
    while killed_before_event(number, cache.folder, write):
        number += 1
    assert number > 2
    atomic_write(path, b"whole")
    with open(cache.folder / f".b{path.suffix}.tersor-0123abcd", "wb") as mine, open(path, "rb"):
        fcntl.flock(mine, fcntl.LOCK_EX)
        cache.tidy()
        assert sorted(p.suffix for p in cache.folder.iterdir()) == [".safetensors", ".safetensors", ".tersor-0123abcd"]
    cache.tidy()
    assert all(not p.name.startswith(".") for p in cache.folder.iterdir())


def test_abandoned_checkpoints_count_and_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3000)
    old = cache.checkpoint("1" * 64)
    old.write_bytes(bytes(2500))
    os.utime(old, (1, 1))
    assert cache.put("2" * 64, {"t": torch.zeros(200)})
    assert not old.exists()
    assert cache.get("2" * 64) is not None


@pytest.mark.parametrize("kind", ["file", "below a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "cache"
    if kind == "read-only":
        folder = Path("/proc/tersor")
    else:
        folder.write_text("a file")
        folder = folder if kind == "file" else folder / "deeper"
    cache = Cache(folder)
    cache.tidy()
    assert cache.get("3" * 64) is None
    with pytest.warns(UserWarning, match=r"The cache .* cannot be written .* Set TERSOR_CACHE to another folder"):
        assert not cache.put("3" * 64, None, 1)


def test_keys_depend_on_what_computes() -> None:
    whole = Path(tersor.__file__).parent
    assert all((whole / name).is_dir() for name in COMPUTING)
    assert all((whole / name).is_file() for name in ELSEWHERE)


def test_files_of_the_users_own_are_never_dropped(tmp_path: Path) -> None:
    """Whoever points TERSOR_CACHE at a folder of models keeps them."""
    mine = [tmp_path / name for name in ("model.safetensors", "model-00001-of-00002.safetensors", "run.training")]
    for path in mine:
        path.write_bytes(bytes(5000))
        os.utime(path, (1, 1))
    cache = Cache(tmp_path, limit=1000)
    cache.tidy()
    assert cache.put(key(1), {"t": torch.zeros(500)})
    assert all(path.exists() for path in mine)


def test_what_another_process_dropped_meanwhile_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.put(key(1), None, 1)
    gone = tmp_path / f"{'0' * 64}.safetensors"
    gone.symlink_to(tmp_path / "nothing")  # listed, and not there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.put(key(2), None, 2)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TERSOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="Set TERSOR_CACHE to another folder"):
        assert not Cache(default_folder()).put(key(1), None, 1)


@pytest.mark.parametrize("kind", [torch.complex128, torch.uint16, torch.uint64, torch.float8_e4m3fn])
def test_tensors_of_every_type_are_kept(tmp_path: Path, kind: torch.dtype) -> None:
    values = torch.arange(6).to(kind).reshape(2, 3)
    assert Cache(tmp_path).put(key(1), {"t": values})
    entry = Cache(tmp_path).get(key(1))
    assert entry is not None
    assert entry.tensors["t"].dtype == kind
    assert torch.equal(entry.tensors["t"].view(torch.uint8), values.view(torch.uint8))
