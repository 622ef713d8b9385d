"""The cache: what was put is got, damage is not, and the disk does not fill."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from tersor.store.cache import Cache, default_folder, key


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
