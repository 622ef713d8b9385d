"""A dictionary of tensors of which only some are in memory."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersor import shelf
from tersor.memory import held, is_memory
from tersor.shelf import Shelf

MB = 1 << 20


@dataclass(frozen=True)
class Pair:
    large: Tensor
    small: Tensor
    note: str = ""


def test_values_are_the_same_wherever_they_lie() -> None:
    values = {f"{i}": torch.randn(300, 300, dtype=torch.float64) for i in range(8)}
    kept = Shelf(values, resident=2 * MB)
    assert list(kept) == list(values)
    assert all(torch.equal(kept[name], value) and kept[name].dtype == value.dtype for name, value in values.items())


def test_axes_lie_in_the_order_they_had() -> None:
    heads = torch.randn(4, 64, 6, 64).transpose(1, 2)
    found = Shelf({"a": heads, "part": heads[:, :5]}, resident=0)
    assert found["a"].stride() == heads.stride()
    assert torch.equal(found["a"].transpose(1, 2).view(4, 64, 384), heads.transpose(1, 2).view(4, 64, 384))
    assert torch.equal(
        found["part"].permute(0, 2, 1, 3).view(4, 64, 320), heads[:, :5].transpose(1, 2).reshape(4, 64, 320)
    )
    wide = torch.ones(300, 1).expand(300, 300)
    assert torch.equal(Shelf({"a": wide}, resident=0)["a"].add_(1), torch.full((300, 300), 2.0))


def test_what_is_added_in_place_stays() -> None:
    kept = Shelf({"a": torch.zeros(100, 100), "b": torch.ones(300, 300)}, resident=0)
    for _ in range(3):
        kept["b"].add_(1)
        assert not kept["a"].any()  # lets the pages of b go
    assert torch.equal(kept["b"], torch.full((300, 300), 4.0))


def test_dataclasses_keep_their_other_fields() -> None:
    pair = Pair(torch.randn(300, 300), torch.arange(3), "as it was")
    found = Shelf({"p": pair}, resident=0)["p"]
    assert torch.equal(found.large, pair.large)
    assert found.small is pair.small
    assert found.note == "as it was"


def test_a_copy_does_not_see_what_is_put_into_the_other() -> None:
    first = Shelf({"a": torch.ones(300, 300), "b": torch.ones(2)}, resident=0)
    second = first.copy()
    second["a"] = torch.zeros(300, 300)
    del second["b"]
    assert bool(first["a"].all())
    assert "b" in first
    assert not second["a"].any()
    assert "b" not in second


def test_a_value_outlives_its_shelf() -> None:
    value = Shelf({"a": torch.ones(400, 400)}, resident=0)["a"]
    gc.collect()
    assert float(value.sum()) == 400 * 400


def test_what_is_put_aside_is_as_it_was() -> None:
    tied = torch.randn(300, 300)
    tensors = [tied, tied[:], tied.t(), torch.nn.Parameter(torch.randn(400, 400), requires_grad=False), torch.ones(2)]
    before, storage = [t.clone() for t in tensors], tied.data_ptr()
    let_go = shelf.put_aside(tensors)
    for _ in range(2):
        assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
        let_go()
    assert tensors[0].data_ptr() == tensors[1].data_ptr() != storage
    assert isinstance(tensors[3], torch.nn.Parameter)


@pytest.mark.skipif(is_memory(Path("/tmp")), reason="files in /tmp are in memory here")
def test_what_is_put_aside_is_not_in_memory() -> None:
    before = held()
    tensors = [torch.full((4 * MB,), float(i)) for i in range(8)]  # 16 MB each
    let_go = shelf.put_aside(tensors)
    assert held() - before < 40 * MB
    assert sum(float(t[-1]) for t in tensors) == 28
    assert all(float(t.sum()) == i * 4 * MB for i, t in enumerate(tensors))
    assert held() - before > 100 * MB
    let_go()
    assert held() - before < 40 * MB


@pytest.mark.skipif(is_memory(Path("/tmp")), reason="files in /tmp are in memory here")
def test_memory_is_bounded() -> None:
    kept: Shelf[Tensor] = Shelf(resident=8 * MB)
    before = held()
    for i in range(20):
        kept[str(i)] = torch.full((MB,), float(i))  # 4 MB each
    total = sum(float(kept[str(i)][0]) for i in range(20))
    assert total == 190
    assert held() - before < 40 * MB  # of 80
    for _ in range(2):
        assert sum(float(kept[str(i)].sum()) for i in range(20)) == 190 * MB
    assert held() - before < 40 * MB


def test_without_room_on_the_disk_values_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert torch.equal(Shelf({"a": torch.ones(300, 300)}, resident=0)["a"], torch.ones(300, 300))


def test_files_that_are_memory_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "is_memory", lambda folder: True)
    monkeypatch.setattr(shelf.tempfile, "mkstemp", lambda **_: pytest.fail("a file was made"))
    assert torch.equal(Shelf({"a": torch.ones(300, 300)}, resident=0)["a"], torch.ones(300, 300))


def test_nothing_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf.tempfile, "tempdir", str(tmp_path))
    kept = Shelf({"a": torch.ones(300, 300)}, resident=0)
    assert bool(kept["a"].all())
    assert not list(tmp_path.iterdir())


def test_no_file_has_a_name_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it makes one leaves nothing."""
    seen: list[str] = []
    allocate = os.posix_fallocate
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(shelf, "is_memory", lambda _: False)
    monkeypatch.setattr(os, "posix_fallocate", lambda *given: (seen.extend(os.listdir(tmp_path)), allocate(*given)))
    kept = Shelf({"a": torch.ones(300, 300)}, resident=0)
    assert kept.on_disk
    assert bool(kept["a"].all())
    assert seen == []
