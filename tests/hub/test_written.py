"""An ONNX file is written piece by piece, and is what protobuf would write at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hubzoo import compressed
from torch import nn

from tersor.graph.model import capture
from tersor.hub import files
from tersor.hub.export import to_onnx
from tersor.hub.files import save_onnx
from tersor.hub.insertion import insert_grids
from tersor.target import Compressed
from tersor.targets.onnxruntime import PLACEMENTS


@pytest.fixture(params=[0, 1 << 16], ids=["all are large", "as it is"])
def _threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGE", request.param)


def wide() -> Compressed:
    """One tensor takes more bytes than two digits of a length."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 2000), nn.ReLU(), nn.Linear(2000, 3))
    return Compressed(capture(model.eval(), (torch.randn(2, 300),)))


def float_model() -> ir.Model:
    return to_onnx(compressed("residual")).onnx


def integer_model() -> ir.Model:
    made = compressed("residual")
    return insert_grids(to_onnx(made), made, PLACEMENTS["standard"])


@pytest.mark.usefixtures("_threshold")
@pytest.mark.parametrize("make", [float_model, integer_model, lambda: to_onnx(wide()).onnx])
def test_it_is_the_same_message(make, tmp_path: Path) -> None:
    model = make()
    before = ir.to_proto(model)
    save_onnx(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == before
    assert ir.to_proto(model) == before  # nor did writing it change it
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


@pytest.mark.usefixtures("_threshold")
def test_codes_of_four_bits_and_numbers_of_two_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = [
        ir.tensor(rng.integers(-8, 8, (3, 5)).astype(np.int8), ir.DataType.INT4, name="codes"),
        ir.tensor(rng.standard_normal((7, 3)).astype(np.float16), name="halves"),
        ir.tensor(np.float32(3.5), name="scalar"),
        ir.tensor(np.zeros((0, 4), np.float32), name="nothing"),
    ]
    values = [ir.Value(name=t.name, const_value=t, shape=t.shape, type=ir.TensorType(t.dtype)) for t in tensors]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21}, name="graph")
    model = ir.Model(graph, ir_version=10, producer_name="tersor")
    save_onnx(model, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == ir.to_proto(model)
    assert b"tersor" in (tmp_path / "model.onnx").read_bytes()[:64]
    found = ir.load(tmp_path / "model.onnx").graph.initializers
    for tensor in tensors:
        np.testing.assert_array_equal(found[tensor.name].const_value.numpy(), tensor.numpy())
