"""Feeds made at run time: what is written, what ONNX Runtime makes of it, and that the simulation computes the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hubzoo import captured, example, quantised
from torch import Tensor, nn

from tersor.errors import ExportError
from tersor.feeds import feeds_of
from tersor.graph.model import Model, capture
from tersor.hub.export import to_onnx
from tersor.hub.insertion import insert_grids
from tersor.hub.placement import Placement
from tersor.hub.reference import apply
from tersor.hub.simulate import evaluate, simulate
from tersor.profile import measure
from tersor.target import Compressed, Dynamic, Grid
from tersor.targets.onnxruntime import OnnxRuntime, _outputs
from tersor.targets.openvino import OpenVINO


class Mlp(nn.Module):
    """Three Gemms, the last without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 48), nn.Linear(48, 32), nn.Linear(32, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.gelu(self.a(x)))))


class Attention(nn.Module):
    """MatMuls on three dimensions; three of them read one activation, two have no weight, the sums stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=bias) for bias in (True, False, True))
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / 4
        return x + self.out(scores.softmax(-1) @ self.v(y))


def drawn(name: str, items: int, seed: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    if name == "mlp":
        return (torch.randn(items, 24, generator=draw) * 3,)
    if name == "attention":
        return (torch.randn(items, 7, 16, generator=draw),)
    return example(name, items, seed)


def model(name: str) -> Model:
    if name not in ("mlp", "attention"):
        return captured(name)
    torch.manual_seed(2)
    return capture((Mlp() if name == "mlp" else Attention()).eval(), drawn(name, 2, 0))


@cache
def dynamic(name: str) -> Compressed:
    batches = [drawn(name, 16, 10)]
    made = quantised(model(name), batches)
    return Compressed(made.model, made.weights, feeds_of(made.model, measure(made.model, batches).ranges, "dynamic"))


@cache
def written(name: str) -> ir.Model:
    return insert_grids(to_onnx(dynamic(name)), dynamic(name), Placement(dynamic=True))


def kinds(onnx: ir.Model) -> list[str]:
    return [node.op_type for node in onnx.graph]


def inputs(name: str, items: int) -> list[np.ndarray]:
    return [t.numpy() for t in drawn(name, items, seed=5)]


HOW_MANY = {"mlp": (3, 3), "attention": (4, 2), "several": (2, 2), "residual": (1, 1)}


@pytest.mark.parametrize("name", HOW_MANY)
def test_weights_are_stored_as_int8_and_one_activation_is_quantised_once(name: str) -> None:
    onnx = written(name)
    matrices, activations = HOW_MANY[name]
    products = [node for node in onnx.graph if node.op_type == "MatMulInteger"]
    assert len(products) == matrices
    assert kinds(onnx).count("DynamicQuantizeLinear") == activations
    assert {node.inputs[1].dtype for node in products} == {ir.DataType.INT8}
    assert {v.dtype for v in onnx.graph.initializers.values() if len(v.shape) > 1} == {ir.DataType.INT8}


@pytest.mark.parametrize("name", HOW_MANY)
def test_the_simulation_is_the_runtime_at_any_batch(name: str) -> None:
    onnx = written(name)
    for items in (1, 3, 64):
        given = inputs(name, items)
        for ours, theirs in zip(simulate(onnx, given), _outputs(onnx, given), strict=True):
            assert theirs.shape[0] == items
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", HOW_MANY)
def test_integer_sums_are_the_runtimes_bit_for_bit(name: str) -> None:
    """Of all matrices on the runtime's own codes, and of the first on the simulated ones.

    Later codes follow from floats, where the last bit of an exponential differs between libraries.
    """
    onnx, given = written(name).clone(), inputs(name, 32)
    products = [node for node in onnx.graph if node.op_type == "MatMulInteger"]
    seen = list(dict.fromkeys(v for node in products for v in (node.inputs[0], node.inputs[2], node.outputs[0])))
    for value in seen:
        value.type = ir.TensorType(ir.DataType.INT32 if value.producer() in products else ir.DataType.UINT8)
    simulated = evaluate(onnx.graph, given, "onnxruntime")
    onnx.graph.outputs[:] = seen
    theirs = dict(zip(seen, map(torch.from_numpy, _outputs(onnx, given)), strict=True))
    for node in products:
        weight = torch.from_numpy(node.inputs[1].const_value.numpy())
        (sums,) = apply(node, [theirs[node.inputs[0]], weight, theirs[node.inputs[2]]])
        assert torch.equal(sums, theirs[node.outputs[0]])
    if name != "attention":  # there, a norm comes before the first
        assert all(torch.equal(simulated[value], theirs[value]) for value in seen[:3])


@pytest.mark.parametrize("name", HOW_MANY)
def test_onnx_runtime_runs_every_linear_in_integers(name: str, tmp_path: Path) -> None:
    target = OnnxRuntime("int8")
    target.export(dynamic(name), tmp_path)
    audit = target.load(tmp_path).audit()
    fused = {o.name: o.kind for o in audit.operators if o.kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")}
    shared = dict.fromkeys("qkv", "MatMulIntegerToFloat")
    assert (
        fused
        == {
            "mlp": dict.fromkeys("abc", "DynamicQuantizeMatMul"),
            "attention": {"out": "DynamicQuantizeMatMul", **shared},
            "several": dict.fromkeys(("project", "score"), "DynamicQuantizeMatMul"),
            "residual": {"head": "DynamicQuantizeMatMul"},
        }[name]
    )
    floats = [o for o in audit.operators if o.precision != "i8"]
    assert {o.reason for o in floats} == ({"both factors are activations"} if name == "attention" else set())
    assert target.fidelity(tmp_path, inputs(name, 300)).agreement >= 0.99


def test_convolutions_keep_static_grids_and_nothing_between_linears_gets_one() -> None:
    feeds = dynamic("residual").feeds
    assert isinstance(feeds["image"], Grid)
    assert [name for name, feed in feeds.items() if isinstance(feed, Dynamic)] == ["mean"]
    assert kinds(written("residual")).count("QuantizeLinear") > 5
    assert all(isinstance(feed, Dynamic) for feed in dynamic("attention").feeds.values())
    assert "QuantizeLinear" not in kinds(written("attention"))


class Tied(nn.Module):
    """A head that is its own embedding: exported as a transposed constant with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.embed(ids)))


def test_a_tied_weight_runs_in_integers_and_is_looked_up_in_floats(tmp_path: Path) -> None:
    torch.manual_seed(3)
    ids = torch.arange(55).reshape(5, 11) % 11
    tied = capture(Tied().eval(), (ids[:2],))
    made = quantised(tied, [(ids,)])
    fed = Compressed(made.model, made.weights, feeds_of(made.model, measure(made.model, [(ids,)]).ranges, "dynamic"))
    target = OnnxRuntime("int8")
    target.export(fed, tmp_path)
    runner = target.load(tmp_path)
    assert [(o.precision, o.kind) for o in runner.audit().operators] == [("i8", "DynamicQuantizeMatMul")]
    wanted = tied.run(ids)[0].numpy()
    np.testing.assert_allclose(runner.predict(ids.numpy())[0], wanted, atol=0.03 * np.abs(wanted).max())


def test_a_batch_of_zeros_is_exact() -> None:
    zeros = np.zeros((2, 24), np.float32)
    (ours,), (theirs,) = simulate(written("mlp"), [zeros]), _outputs(written("mlp"), [zeros])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_target_without_dynamic_feeds_refuses_them(tmp_path: Path) -> None:
    wanted = (
        r"Activation x is quantized dynamically, but this target supports only static quantization: use static feeds"
    )
    with pytest.raises(ExportError, match=wanted):
        OpenVINO("int8").export(dynamic("mlp"), tmp_path)
    assert OnnxRuntime.dynamic_feeds
    assert not OpenVINO.dynamic_feeds
