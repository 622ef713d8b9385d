"""What is in no layer is said, with the reason and its bytes: by inspect, and in the result of whatever makes a model small."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from tersor.cli.left_alone import show_left_alone
from tersor.distilling import distil
from tersor.graph.model import capture
from tersor.inspection import inspect
from tersor.left_alone import LeftAlone, left_alone
from tersor.pruning import prune
from tersor.quantising import quantize
from tersor.report import Figures, Report


class Odd(nn.Module):
    """A network of layers and of things that are none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.experts, self.unread = nn.Parameter(torch.randn(4, 8, 8)), nn.Parameter(torch.randn(6))
        self.place, self.last = nn.Parameter(torch.randn(4, 8)), nn.Linear(8, 3)
        self.both, self.shared = nn.Bilinear(8, 8, 8), nn.Parameter(torch.randn(12, 8))
        self.register_buffer("near", torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.near @ self.norm(self.embed(x) + self.place)
        y = torch.bmm(y.transpose(0, 1), self.experts).transpose(0, 1)
        y = y + torch.softmax(y @ y.transpose(1, 2), -1) @ y
        y = self.both(y, y)
        y = y + nn.functional.linear(y, self.shared[:8]) + nn.functional.linear(y, self.shared[2:10])
        return self.last(y.relu().mean(1))


def ids(count: int) -> Tensor:
    return torch.randint(0, 11, (count, 4), generator=torch.Generator().manual_seed(1))


def test_everything_is_in_a_layer_or_left_alone_with_the_reason():
    found = inspect((Odd().eval(), ids(2)))
    assert [layer.name for layer in found.layers] == ["last", "embed"]
    assert {each.name: (each.reason, each.nbytes) for each in found.left_alone} == {
        "both.weight": ("used in aten.bilinear, which Tersor does not compress", 2048),
        "experts": ("used in aten.bmm, which Tersor does not compress", 1024),
        "shared": ("not the weight of one layer: aten.linear and others use it in different ways", 384),
        "place": ("used elementwise, by aten.add", 128),
        "near": ("a buffer, used in aten.matmul, which Tersor does not compress", 64),
        "both.bias": ("used in aten.bilinear, which Tersor does not compress", 32),
        "norm.bias": ("a norm's scale or shift", 32),
        "norm.weight": ("a norm's scale or shift", 32),
        "unread": ("nothing in the forward pass reads it", 24),
    }
    buffers = 16
    known = sum(layer.parameters for layer in found.layers) + sum(each.nbytes // 4 for each in found.left_alone)
    assert known == found.parameters + buffers
    assert {each.operator: each.macs for each in found.products} == {
        "aten.matmul": 4 * 4 * 8 * 3,  # near, the scores, and what they weigh
        "aten.bmm": 4 * 8 * 8,
        "aten.bilinear": 4 * 8 * 8 * 8,
        "aten.linear": 2 * 4 * 8 * 8,
    }


def test_a_parameter_that_is_read_under_another_name_is_read():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = self.first
            self.scale = nn.Parameter(torch.ones(8))
            self.same = self.scale

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x) * self.same

    assert [each.reason for each in left_alone(capture(Tied(), (torch.randn(2, 8),)))] == [
        "used elementwise, by aten.mul"
    ]


class Small(nn.Module):
    """A GRU cell stepped by hand, between an embedding and a head, and a scale."""

    def __init__(self, width: int = 16):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.cell, self.head = nn.Embedding(11, 8), nn.GRUCell(8, width), nn.Linear(width, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], self.width)
        for step in range(4):
            state = self.cell(self.embed(x[:, step]), state)
        return self.head(state) * self.scale


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs, and what the network gives for them."""
    net = Small().eval()
    return [(x, net(x).detach()) for x in ids(96).split(32)]


def test_a_quantized_model_says_what_stayed_float(batches):
    net = Small().eval()
    found = quantize((net, ids(2)), batches, metric="mse", weights=4, exclude=["head"])
    assert found.weights == {"cell.weight_ih": 8, "cell.weight_hh": 4}
    assert {each.name: each.reason for each in found.left_alone} == {
        "embed": "an embedding, for which no format was given",
        "head": "excluded by the user",
        "scale": "used elementwise, by aten.mul",
    }
    assert json.loads(json.dumps(found.to_json()))["left_alone"][0]["nbytes"] == 352
    cell = 48 * 8 + 48 * 16  # the weights, of which half have 8 bits
    assert found.bytes[1] < found.bytes[0] - 4 * cell + cell + 48 * 2 * 8 + 100
    worse = found.after - found.before
    assert found.drop.text == f"mse 0 -> {found.after:.6g} ({worse:.3g} worse; of 0 there is no percentage)"
    torch.testing.assert_close(found.module(ids(8)), net(ids(8)), atol=0.2, rtol=0.2)


def test_a_pruned_model_says_of_what_nothing_could_go(batches):
    net = Small().eval()
    found = prune((net, ids(2)), batches, metric="mse", macs="70%", exclude=["embed"])
    assert found.widths["cell.weight_ih"][0] < 16
    assert {each.name: each.reason for each in found.left_alone} == {
        "embed": "excluded by the user",
        "scale": "used elementwise, by aten.mul",
    }
    sparse = prune((net, ids(2)), batches, metric="mse", weights="50%")
    assert [each.name for each in sparse.left_alone] == ["embed", "scale"]
    assert "left_alone" in sparse.to_json()


def test_a_student_says_what_was_not_trained():
    class Kept(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(5))
            self.unread = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shift

    found = distil(
        Kept().eval(), list(ids(96).split(32)), teacher=(Kept().eval(), ids(2)), metric="agreement", recover="1epoch"
    )
    assert {each.name: each.reason for each in found.left_alone} == {
        "shift": "a buffer, used elementwise, by aten.add",
        "unread": "nothing in the forward pass reads it",
    }


def test_the_report_keeps_what_was_left_alone():
    left = (LeftAlone("embed", "excluded by the user", 352),)
    report = Report("net", "accuracy", Figures("a"), Figures("b"), left_alone=left)
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).left_alone == left
    assert "excluded by the user" in report.to_html()


def test_the_table_has_a_line_for_each_reason(capsys):
    many = [LeftAlone(f"norm{i}.weight", "a norm's scale or shift", 32) for i in range(6)]
    show_left_alone([LeftAlone("both.weight", "used in aten.bilinear, which Tersor does not compress", 2048), *many])
    shown = capsys.readouterr().out
    assert "Left alone: 2.24 kB" in shown
    assert "norm0.weight, norm1.weight, norm2.weight, norm3.weight and 2 more" in shown
    show_left_alone([])
    assert not capsys.readouterr().out


def test_what_is_computed_in_another_precision_is_left_alone():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.first(x)
            return self.last(x.float().relu())

    found = quantize(
        (Mixed().eval(), torch.randn(2, 8)), list(torch.randn(90, 8).split(30)), weights=8, metric="cosine"
    )
    assert found.weights == {"last": 8}
    assert found.after > 0.999
    assert {each.name: each.reason for each in found.left_alone} == {
        "first.weight": "computed in bfloat16, where Tersor compresses what is computed in float32",
        "first.bias": "computed in bfloat16, where Tersor compresses what is computed in float32",
    }
