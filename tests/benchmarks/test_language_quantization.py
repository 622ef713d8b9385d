from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tersor
from benchmarks.language_quantization import llama_folder, loaded
from tersor.language import text
from tersor.language.folder import open_folder


@pytest.mark.slow
@pytest.mark.realdata
def test_a_trained_model_at_four_bits(tmp_path: Path, loaders: Any):
    module, tokens = loaders.stories260k()
    path = llama_folder(module, tmp_path / "in")
    story = tokens.encode(loaders.tinystories()[0])[:60]
    some = torch.tensor([story])
    with torch.no_grad():
        wanted = module(some)
        assert torch.allclose(loaded(path)(some).logits, wanted, atol=1e-3)
    text_of_mine = torch.cat(text.drawn(open_folder(path), 0, windows=32, length=64))
    found = tersor.quantize(path, [text_of_mine], weights=4, groups=32, eval_data=[some], out=tmp_path / "out")
    assert found.after < found.before + 0.15
    assert found.bytes[1] < 0.4 * found.bytes[0]
