import numpy as np
import onnx_ir as ir
import pytest
import torch
from hubzoo import compressed, example, hub

from tersor.errors import ExportError
from tersor.hub.fidelity import compare, ending_at, first_divergence
from tersor.hub.insertion import insert_grids
from tersor.hub.placement import Placement
from tersor.hub.simulate import simulate
from tersor.targets import onnxruntime, openvino

RUN = {"onnxruntime": onnxruntime._outputs, "openvino": openvino._outputs}


def inputs(name: str, items: int) -> list[np.ndarray]:
    return [t.numpy() for t in example(name, items, seed=5)]


@pytest.fixture(scope="module", params=["residual", "wide", "several", "positions"])
def quantised(request) -> tuple[str, ir.Model]:
    made = compressed(request.param)
    return request.param, insert_grids(hub(request.param), made, Placement())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_simulation_is_the_runtime(quantised, runtime):
    name, onnx = quantised
    fidelity = compare(onnx, inputs(name, 64), runtime, RUN[runtime])
    assert fidelity.items == 64
    assert fidelity.agreement >= (1.0 if runtime == "onnxruntime" else 0.98)
    if name == "residual" and runtime == "onnxruntime":
        assert fidelity.largest == 0.0
        assert fidelity.parts is None


def test_batches_are_independent(quantised):
    name, onnx = quantised
    whole = simulate(onnx, inputs(name, 6))
    for i in range(6):
        one = simulate(onnx, [a[i : i + 1] for a in inputs(name, 6)])
        for a, b in zip(whole, one, strict=True):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-5, atol=1e-5)


def test_a_wrong_runtime_is_caught_and_the_node_named(quantised):
    name, onnx = quantised
    if name != "residual":
        pytest.skip("one network is enough")
    culprit = "relu_2_q"

    def wrong(model, feed):
        scale = f"{culprit.removesuffix('_q')}_scale"
        broken = model.clone()
        if scale in broken.graph.initializers:
            value = broken.graph.initializers[scale]
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5), name=scale)
        return RUN["onnxruntime"](broken, feed)

    found = first_divergence(onnx, inputs(name, 4), "onnxruntime", wrong)
    assert found is not None
    assert found.node == culprit
    assert 0 < found.differing <= found.total
    fidelity = compare(onnx, inputs(name, 4), "onnxruntime", wrong)
    assert fidelity.parts is not None
    assert fidelity.parts.node == culprit


def test_a_shortened_model_ends_at_the_codes(quantised):
    name, onnx = quantised
    first = next(n.outputs[0].name for n in onnx.graph if n.op_type == "QuantizeLinear")
    (codes,) = RUN["onnxruntime"](ending_at(onnx, first), inputs(name, 2))
    assert codes.dtype == np.uint8


def test_an_unknown_grid_is_refused(quantised):
    name, onnx = quantised
    if name != "residual":
        pytest.skip("one network is enough")
    broken = onnx.clone()
    zero = broken.graph.initializers["image_zero"]
    zero.const_value = ir.tensor(np.zeros(3, np.uint8), name="image_zero")
    with pytest.raises(ExportError, match="not per tensor"):
        simulate(broken, inputs(name, 2))


def test_simulation_without_grids_is_the_float_model(quantised):
    name, _ = quantised
    made = compressed(name)
    onnx = hub(name).onnx
    for a, b in zip(simulate(onnx, inputs(name, 3)), made.model.run(*example(name, 3, seed=5)), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-5)


def test_a_sum_of_codes_is_rounded_as_the_runtime_does():
    """All pairs of codes: sums a hair beside a half tell in which order the runtime adds."""
    pairs = torch.cartesian_prod(torch.arange(256.0), torch.arange(256.0))
    drawn = np.random.default_rng(0)
    for _ in range(24):
        scales, zeros = drawn.uniform(0.02, 0.06, 3).astype(np.float32), drawn.integers(0, 256, 3)
        grids = [(repr(float(s)), int(z)) for s, z in zip(scales, zeros, strict=True)]
        added = sum_of_codes(*grids)
        real = [((codes - z) * float(s)).numpy() for codes, s, z in zip(pairs.T, scales, zeros, strict=False)]
        ours, theirs = simulate(added, real), RUN["onnxruntime"](added, real)
        np.testing.assert_array_equal(ours[0], theirs[0])


def sum_of_codes(*grids: tuple[str, int]) -> ir.Model:
    """Two quantised vectors, their sum quantised; scale and zero of each."""
    values = ", ".join(f"float s{i} = {{{s}}}, uint8 z{i} = {{{z}}}" for i, (s, z) in enumerate(grids))
    return ir.from_onnx_text(
        f"""<ir_version: 9, opset_import: ["": 17]>
        sums (float[N] x, float[N] y) => (float[N] out) <{values}> {{
            a = QuantizeLinear (x, s0, z0)
            b = QuantizeLinear (y, s1, z1)
            c = DequantizeLinear (a, s0, z0)
            d = DequantizeLinear (b, s1, z1)
            e = Add (c, d)
            f = QuantizeLinear (e, s2, z2)
            out = DequantizeLinear (f, s2, z2)
        }}"""
    )
