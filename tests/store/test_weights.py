"""Weights to disk and back, and files that lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tersor import forms
from tersor.errors import ArtifactError
from tersor.store.weights import from_bytes, read, to_bytes, write
from tersor.weight import Weight

FORM = """
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor, dtype
from tersor.weight import Weight
import os

@dataclass(frozen=True, eq=False)
class Leaf(Weight):
    values: Tensor
    scale: float
    shape: tuple[int, ...]
    kind: dtype | None = None
    name: str = ""
    on: bool = True

    def dense(self):
        return self.values * self.scale

    @property
    def nbytes(self):
        return self.values.numel() * self.values.element_size()

    def nearest(self, latent):
        return self

@dataclass(frozen=True, eq=False)
class Pair(Weight):
    parts: tuple[Weight, ...]

    def dense(self):
        return sum(p.dense() for p in self.parts)

    @property
    def nbytes(self):
        return sum(p.nbytes for p in self.parts)

    def nearest(self, latent):
        return self
"""


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "example_form.py").write_text(FORM)
    monkeypatch.setattr(forms, "__path__", [*forms.__path__, str(tmp_path)])
    import importlib

    yield importlib.import_module("tersor.forms.example_form")
    del sys.modules["tersor.forms.example_form"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, Weight):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))  # type: ignore[arg-type]
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def trees(form: Any) -> dict[str, Weight]:
    shared = torch.arange(12.0).reshape(3, 4)
    leaf = form.Leaf(shared, 0.1 + 0.2, (3, 4), torch.int8, "ü", False)
    half = form.Leaf(torch.ones(3, 4, dtype=torch.bfloat16), 1.0, (), None)
    view = form.Leaf(shared.t(), -0.0, (4, 3))
    return {
        "b.weight": form.Pair((leaf, form.Pair((half, leaf)))),
        "a.weight": view,
        "mask": form.Leaf(shared > 3, 1.0, ()),
    }


def test_there_and_back_is_the_identity(tmp_path: Path, form: Any) -> None:
    weights = trees(form)
    write(tmp_path / "w.safetensors", weights)
    again = read(tmp_path / "w.safetensors")
    assert again.keys() == weights.keys()
    assert all(same(weights[name], again[name]) for name in weights)
    assert to_bytes(again) == to_bytes(weights) == to_bytes(dict(reversed(weights.items())))


def test_the_file_grows_by_the_tensors(form: Any) -> None:
    small, large = (to_bytes({"w": form.Leaf(torch.zeros(n), 1.0, (1000,))}) for n in (1000, 9000))
    assert abs(len(large) - len(small) - 4 * 8000) < 16


def crafted(tree: Any, version: Any = 1) -> bytes:
    return save({"t": torch.zeros(2)}, {"tersor": json.dumps({"version": version, "weights": {"w": tree}})})


LEAF = {"values": {"tensor": "t"}, "scale": 1.0, "shape": {"tuple": []}, "kind": None, "name": "", "on": True}


@pytest.mark.parametrize(
    "tree",
    [
        {"form": "os.system", "fields": {}},
        {"form": "example_form.os", "fields": {}},
        {"form": "example_form.Weight", "fields": {}},
        {"form": "example_form.dataclass", "fields": {}},
        {"form": "example_form.Leaf.__init__", "fields": {}},
        {"form": "..store.files.Path", "fields": {}},
        {"form": "example_form.Leaf", "fields": {k: v for k, v in LEAF.items() if k != "on"}},
        {"form": "example_form.Leaf", "fields": LEAF | {"more": 1}},
        {"form": "example_form.Leaf", "fields": LEAF | {"values": {"tensor": "missing"}}},
        {"form": "example_form.Leaf", "fields": LEAF | {"kind": {"dtype": "load"}}},
        {"form": "example_form.Leaf", "fields": LEAF | {"kind": {"dtype": "nothing"}}},
        {"form": "example_form.Leaf", "fields": LEAF | {"scale": {"call": "x"}}},
        {"form": "example_form.Leaf", "fields": LEAF | {"scale": [1]}},
        {"form": ["example_form.Leaf"], "fields": LEAF},
        {"form": "example_form.Leaf", "fields": []},
        {"tensor": "t"},
        1,
        None,
    ],
)
def test_trees_that_lie_are_refused(form: Any, tree: Any) -> None:
    assert from_bytes(crafted({"form": "example_form.Leaf", "fields": LEAF}))
    with pytest.raises(ArtifactError):
        from_bytes(crafted(tree))


def test_deep_nests_and_later_versions_are_refused(form: Any) -> None:
    tree: Any = {"form": "example_form.Leaf", "fields": LEAF}
    for _ in range(60):
        tree = {"form": "example_form.Pair", "fields": {"parts": {"tuple": [tree]}}}
    with pytest.raises(ArtifactError, match="more than 32 deep"):
        from_bytes(crafted(tree))
    with pytest.raises(ArtifactError, match="weights of version 2"):
        from_bytes(crafted({"form": "example_form.Leaf", "fields": LEAF}, 2))


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, form: Any) -> None:
    data = to_bytes(trees(form))
    for cut in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError):
            from_bytes(data[:cut])
    for foreign in (b"\xff" * 100, b"PK\x03\x04" + bytes(100), (1 << 62).to_bytes(8, "little") + b"{}", save({})):
        with pytest.raises(ArtifactError):
            from_bytes(foreign)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path / "missing")
    (tmp_path / "large").write_bytes(data)
    with pytest.raises(ArtifactError, match="at most 10 are read"):
        read(tmp_path / "large", largest=10)


def test_what_is_no_weight_is_not_written(form: Any) -> None:
    with pytest.raises(TypeError, match="w/scale is a dict"):
        to_bytes({"w": form.Leaf(torch.zeros(1), {}, ())})
    with pytest.raises(ValueError, match="JSON compliant"):
        to_bytes({"w": form.Leaf(torch.zeros(1), float("nan"), ())})


def test_the_forms_of_this_package_survive_the_disk() -> None:
    from tersor.forms.affine import affine
    from tersor.forms.bitmask import bitmask
    from tersor.forms.dense import Dense
    from tersor.forms.sum import Sum
    from tersor.maths.grid import Integers, PerGroup, absmax

    w = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    grid = absmax(w, Integers(4, False, PerGroup(5)))
    rounded = affine(grid.codes(w), grid, 4, (6, 10), 1, False)
    weights = {"a": Dense(w), "b": bitmask(w, w > 0), "c": rounded, "d": Sum(rounded, bitmask(w, w > 1))}
    again = from_bytes(to_bytes(weights))
    for name, weight in weights.items():
        assert torch.equal(again[name].dense(), weight.dense())
        assert again[name].nbytes == weight.nbytes
