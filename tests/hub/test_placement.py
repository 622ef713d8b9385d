"""Where grids stand: with integer kernels on the way, and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.calibrated import prepared
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.hub.export import to_onnx
from tersor.hub.insertion import insert_grids
from tersor.hub.placement import Placement
from tersor.site import matrices
from tersor.target import Compressed
from tersor.techniques.gptq import GPTQ


class Transformer(nn.Module):
    """A feed-forward block behind a norm, and its residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.up, self.down = (
            nn.Linear(12, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
        )
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.head(self.last(h + self.down(F.gelu(self.up(self.norm(h))))))


class Residual(nn.Module):
    """A sum that a convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.head(F.relu(h + self.c(F.relu(self.b(h)))))


def _fitted(module: nn.Module, x: Tensor) -> Compressed:
    torch.manual_seed(0)
    model: Model = capture(module.eval(), (x[:2],))
    ground, profile = prepared(model, [(x,)])
    techniques = {m.name: GPTQ() for m in matrices(ground)}
    return fit(ground, [(x,)], profile, Decisions(techniques=techniques, feeds="static"))


def _dequantised(made: Compressed) -> list[tuple[str, list[bool]]]:
    """Of every operator but the grids themselves: which of its inputs come from a grid."""
    found = []
    for node in insert_grids(to_onnx(made), made, Placement()).graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            sources = [None if v is None else v.producer() for v in node.inputs]
            found.append((node.op_type, [s is not None and s.op_type == "DequantizeLinear" for s in sources]))
    return found


def test_before_norms_gelu_and_their_sums_there_is_no_grid() -> None:
    made = _fitted(Transformer(), torch.randn(64, 6, 12))
    found = _dequantised(made)
    matrix = [fed for kind, fed in found if kind in ("MatMul", "Gemm")]
    assert len(matrix) == 4
    assert all(fed[:2] == [True, True] for fed in matrix)
    assert not any(any(fed) for kind, fed in found if kind not in ("MatMul", "Gemm", "Reshape", "Transpose"))


def test_sums_that_a_convolution_reads_stand_on_grids() -> None:
    made = _fitted(Residual(), torch.randn(64, 3, 8, 8))
    sums = [fed for kind, fed in _dequantised(made) if kind == "Add"]
    assert sums == [[True, True]]
    assert {"relu", "relu_1"} <= set(made.feeds)
