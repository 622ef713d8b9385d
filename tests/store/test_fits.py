from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tersor.feeds import Feeds
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.profile import measure
from tersor.rewrites.shrink import shrink
from tersor.store.cache import Cache
from tersor.store.fits import remembered
from tersor.target import Compressed
from tersor.techniques.gptq import GPTQ


@pytest.mark.parametrize("feeds", ["static", "dynamic"])
def test_a_fit_comes_back_bit_for_bit_and_is_made_once(tmp_path: Path, feeds: Feeds) -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    model, batches = capture(network, (images[:2],)), [(images,)]
    keep = {"0": (0, 2, 3, 5, 7)}
    decisions = Decisions(keep=keep, techniques={"0": GPTQ(bits=8), "4": GPTQ(bits=8)}, feeds=feeds)
    calls = []

    def fitted() -> Compressed:
        calls.append(1)
        return fit(model, batches, measure(model, batches), decisions)

    def bare() -> Model:
        return shrink(model, keep)

    first, second = (remembered(Cache(tmp_path), "abc", bare, fitted) for _ in range(2))
    assert len(calls) == 1
    assert second.model.digest() == first.model.digest()
    assert second.feeds == first.feeds
    assert first.feeds
    assert second.weights.keys() == first.weights.keys() == {"0.weight", "4.weight"}
    assert all(torch.equal(second.weights[name].dense(), w.dense()) for name, w in first.weights.items())
    # a cache entry that does not fit is no entry
    remembered(Cache(tmp_path), "abc", lambda: model.copy(), fitted)
    assert len(calls) == 2
