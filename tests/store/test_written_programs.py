"""A file is what its name ends in: ONNX that the checker and a runtime take, or an archive that torch loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tersor.errors import InputError
from tersor.graph.model import capture
from tersor.maths.grid import PerGroup
from tersor.profile import measure
from tersor.site import matrices
from tersor.store.files import refuse_file
from tersor.store.programs import ENDINGS, write_model
from tersor.target import Compressed
from tersor.techniques.rounding import Rounding


class Two(nn.Module):
    """Two outputs, one of them an input that is passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(x).relu()
        return self.second(hidden), hidden


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_an_onnx_file_is_one(bits: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = capture(Two().eval(), (torch.randn(2, 32),))
    weights = {}
    if bits is not None:
        facts = measure(model, [(torch.randn(64, 32),)]).facts
        for m in matrices(model):
            weight = Rounding(bits, granularity=PerGroup(32)).fit(m, model.tensor(m.weight), facts[m.name])
            model.assign(m.weight, weight.dense())
            weights[m.weight] = weight
    path = tmp_path / "new" / "model.onnx"
    write_model(path, Compressed(model, weights))
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.randn(7, 32)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for ours, theirs in zip(model.run(x), found, strict=True):
        np.testing.assert_allclose(
            ours.numpy(), theirs, atol=2e-2 if bits else 1e-5
        )  # its kernels of codes round inputs


def test_an_archive_is_one(tmp_path: Path) -> None:
    model = capture(Two().eval(), (torch.randn(2, 32),))
    write_model(tmp_path / "model.pt2", Compressed(model))
    again = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.randn(3, 32)
    assert torch.equal(again(x)[0], model.run(x)[0])


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The file model.tflite ends in .tflite; wanted .pt2 or .onnx"):
        refuse_file(tmp_path / "model.tflite", ENDINGS)
