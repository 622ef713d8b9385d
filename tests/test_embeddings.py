"""A recommender whose embedding is most of it: the integer artifact holds rows of codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.measuring.batches import Batches
from tersor.pipeline import compress

ITEMS, WIDTH = 6000, 16


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.score = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, seen: Tensor) -> Tensor:
        return self.score(self.items(seen).mean(1))


def data(module: nn.Module) -> Batches:
    seen = torch.randint(0, ITEMS, (600, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Batches.of(seen, module(seen).argmax(1), size=100)


@pytest.mark.parametrize("target", ["onnxruntime:int8", pytest.param("openvino:int8", marks=pytest.mark.slow)])
def test_rows_are_codes_in_the_integer_artifact(tmp_path: Path, target: str) -> None:
    torch.manual_seed(0)
    module, out = Recommender().eval(), tmp_path / "small"
    report = compress(module, data(module), max_drop="3%", target=target, out=out, threads=1)
    whole = sum(p.numel() * 4 for p in module.parameters())
    assert sum(f.stat().st_size for f in (out / "model").iterdir()) < 0.4 * whole
    layer = next(layer for layer in report.layers if layer.name == "items")
    assert layer.technique.startswith("Rounding(bits=8")
    assert layer.nbytes_after < 0.4 * layer.nbytes_before
    seen = np.random.default_rng(2).integers(0, ITEMS, (64, 5))
    with torch.no_grad():
        wanted = module(torch.from_numpy(seen)).numpy()
    (got,) = tersor.load(out, threads=1).predict(seen)
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
    assert tersor.verify(out, threads=1).difference <= 1e-3


def test_an_excluded_embedding_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, out = Recommender().eval(), tmp_path / "small"
    target = "onnxruntime:int8"
    report = compress(module, data(module), max_drop="20%", target=target, out=out, threads=1, exclude=("items",))
    assert not [layer for layer in report.layers if layer.name == "items"]


@pytest.mark.parametrize("bits", [8, 4])
def test_an_onnx_file_with_codes_has_rows_of_codes(tmp_path: Path, bits: int) -> None:
    torch.manual_seed(0)
    module, out = Recommender().eval(), tmp_path / "small.onnx"
    found = tersor.quantize(module, data(module), weights=8, embeddings=bits, metric="agreement", threads=1, out=out)
    assert out.stat().st_size < 0.4 * sum(p.numel() * 4 for p in module.parameters())
    seen = np.random.default_rng(2).integers(0, ITEMS, (64, 5))
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: seen})
    with torch.no_grad():
        wanted = found.module(torch.from_numpy(seen)).numpy()
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()  # its kernel rounds what it reads to 8 bits
