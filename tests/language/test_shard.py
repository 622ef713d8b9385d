from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tersor.language.folder import Spec
from tersor.language.shard import NAMES, Writer


def test_any_order_reads_back(tmp_path: Path):
    held = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).to(torch.bfloat16),
        "c": torch.tensor(7),
        "d": torch.zeros(0, 3, dtype=torch.int8),
        "e": torch.tensor([True, False, True]),
    }
    specs = {name: Spec(NAMES[t.dtype], tuple(t.shape)) for name, t in held.items()}
    with Writer(tmp_path / "x.safetensors", specs) as writer:
        for name in reversed(held):
            writer.put(name, held[name])
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], held[name]) for name in held)


def test_a_tensor_that_the_header_does_not_say_is_refused(tmp_path: Path):
    writer = Writer(tmp_path / "x", {"a": Spec("F32", (2,))})
    with pytest.raises(ValueError, match="the header says"):
        writer.put("a", torch.zeros(3))
    with pytest.raises(ValueError, match="1 tensors were never written, the first a"):
        writer.__exit__(None, None, None)
