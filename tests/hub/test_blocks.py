"""ONNX files whose linear layers keep their codes: what they hold and what both runtimes compute."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import tersor
from tersor.errors import InputError

X = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))


class Tower(nn.Module):
    """A linear layer that becomes a Gemm, one on sequences that becomes a MatMul, one whose columns no block divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.odd = nn.Linear(64, 128), nn.Linear(64, 64, bias=False), nn.Linear(64, 30)
        self.last = nn.Linear(30, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.first(x).relu().unflatten(1, (2, 64))
        return self.last(self.odd(self.inner(wide)).relu().sum(1))


FEW = X[:7].numpy()


def outputs(path: Path, runtime: str, x: np.ndarray = FEW) -> np.ndarray:
    if runtime == "openvino":
        ov = pytest.importorskip("openvino")
        # A CPU with VNNI would round what is read to 8 bits.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        compiled = ov.Core().compile_model(str(path), "CPU", settings)
        return np.array(compiled([x])[0])
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        (4, 32),
        (3, 0),
        ("ternary", 0),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((8, 16), ("2", 16), (4, 24), ("binary", 0))),
    ],
)
def test_both_runtimes_compute_what_was_judged(tmp_path: Path, weights: int | str, groups: int, runtime: str):
    out = tmp_path / "small.onnx"
    found = tersor.quantize(Tower(), [(X,)], weights=weights, groups=groups, metric="cosine", out=out)
    assert isinstance(found, tersor.Quantized)
    with torch.no_grad():
        wanted = found.module(X[:7]).numpy()
    # ONNX Runtime's kernel for blocks of 4 bits rounds what it reads to 8 bits.
    assert np.abs(outputs(out, runtime) - wanted).max() < 0.02 * np.abs(wanted).max()
    kinds = [str(v.const_value.dtype) for v in ir.load(out).graph.initializers.values() if "codes" in str(v.name)]
    assert len(kinds) == 4
    assert kinds.count("INT8") == (4 if weights == 8 else 2)  # the first and last matrix have 8 bits


@pytest.mark.realdata
def test_a_language_model_keeps_its_codes(tmp_path: Path, loaders: ModuleType):
    module, tokens = loaders.stories260k()
    ids = torch.tensor(tokens.encode("Once upon a time there was a little girl who"))[None, :12].repeat(8, 1)
    out = tmp_path / "small.onnx"
    found = tersor.quantize(module, [(ids,)], weights=4, groups=32, metric="cosine", threads=1, out=out)
    assert isinstance(found, tersor.Quantized)
    with torch.no_grad():
        wanted = found.module(ids[:2]).numpy()
    for runtime, close in (("openvino", 1e-4), ("onnxruntime", 0.1)):
        assert np.abs(outputs(out, runtime, ids[:2].numpy()) - wanted).max() < close * np.abs(wanted).max()
    kinds = [str(v.const_value.dtype) for v in ir.load(out).graph.initializers.values() if "codes" in str(v.name)]
    assert (kinds.count("INT8"), kinds.count("INT4")) == (2, 34)  # the first and last matrix have 8 bits


def test_what_onnx_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot hold weights in 'nf4'"):
        tersor.quantize(Tower(), [(X,)], weights="nf4", metric="cosine", out=tmp_path / "a.onnx")
    with pytest.raises(InputError, match="no ONNX file with activations of 8 bits"):
        tersor.quantize(Tower(), [(X,)], weights=4, activations=8, metric="cosine", out=tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
