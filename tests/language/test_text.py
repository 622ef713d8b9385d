from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmfolders import folder

from tersor.errors import DataError
from tersor.language import text
from tersor.language.folder import open_folder


def test_every_way_to_bring_ids(tmp_path: Path):
    wanted = torch.arange(12).reshape(3, 4)
    np.save(tmp_path / "a.npy", wanted.numpy().astype(np.uint16))
    np.savez(tmp_path / "a.npz", tokens=wanted.numpy())
    (tmp_path / "f.py").write_text("import torch\ndef data():\n    yield torch.arange(12).reshape(3, 4)\n")
    ways: list[Any] = [
        tmp_path / "a.npy",
        str(tmp_path / "a.npz"),
        f"{tmp_path}/f.py:data",
        wanted,
        [{"input_ids": wanted}],
    ]
    for way in ways:
        (found,) = text.bring(way, 12)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([torch.tensor([[1, 2, 64]])], "token id 64; the model's vocabulary has ids 0 to 63"),
        ([torch.tensor([[1, -1]])], "token id -1"),
        ([torch.rand(2, 3)], "wanted integers"),
        ([torch.zeros(3, dtype=torch.long)], r"shape \(3,\); wanted \(windows, positions\)"),
        ([], "no batches"),
        ("nowhere.npy", "There is no file 'nowhere.npy'"),
        ([{"a": 1, "b": 2}], "names a, b; wanted token ids as input_ids"),
    ],
)
def test_what_is_no_text_is_refused(data: Any, said: str):
    with pytest.raises(DataError, match=said):
        text.bring(data, 64)


def test_a_model_draws_the_same_text_again(tmp_path: Path):
    opened = open_folder(folder(tmp_path, "llama"))
    a, b, c = (torch.cat(text.drawn(opened, seed, windows=34, length=9)) for seed in (0, 0, 1))
    assert a.shape == (34, 9)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert bool((a[:, 0] == 1).all())


def test_a_model_without_a_first_token_needs_data(tmp_path: Path):
    opened = open_folder(folder(tmp_path, "llama"))
    opened.config.pop("bos_token_id")
    with pytest.raises(DataError, match="names no bos_token_id"):
        text.drawn(opened, 0)


def test_split_is_disjoint_and_gathered_keeps_all():
    windows = torch.arange(40).reshape(20, 2)
    fit, judged = text.split([windows[:7], windows[7:]], seed=0)
    assert len(fit) == 16
    assert sorted(torch.cat(fit + judged)[:, 0].tolist()) == windows[:, 0].tolist()
    pieces = text.gathered([windows[:5], windows[5:]], tokens=12)
    assert torch.equal(torch.cat(pieces), windows)
    assert max(p.numel() for p in pieces) == 12
    with pytest.raises(DataError, match="one window of text"):
        text.split([windows[:1]], 0)
