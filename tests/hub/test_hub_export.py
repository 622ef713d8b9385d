import onnx_ir as ir
import pytest
import torch
from hubzoo import compressed, example, hub, quantised
from torch import nn

from tersor.errors import ExportError
from tersor.graph.model import capture
from tersor.hub.export import to_onnx
from tersor.hub.insertion import insert_grids
from tersor.hub.placement import Placement
from tersor.target import Compressed, Grid


@pytest.fixture(scope="module")
def residual():
    return compressed("residual"), hub("residual")


def kinds(onnx: ir.Model) -> list[str]:
    return [node.op_type for node in onnx.graph]


def test_names_batch_and_metadata(residual, capfd):
    _, exported = residual
    graph = exported.onnx.graph
    assert [v.name for v in graph.inputs] == ["image"]
    assert [v.name for v in graph.outputs] == ["output"]
    assert [str(d) for d in graph.inputs[0].shape] == ["batch", "3", "8", "8"]
    assert str(graph.outputs[0].shape[0]) == "batch"
    assert not any(node.metadata_props or node.doc_string for node in graph)
    assert b"hubzoo.py" not in ir.to_proto(exported.onnx).SerializeToString()


def test_every_activation_has_its_value(residual):
    made, exported = residual
    nodes = [n.name for n in made.model.graph.nodes if n.op == "call_function"]
    there = {v.name for node in exported.onnx.graph for v in node.outputs}
    assert set(nodes) - set(exported.values) <= {n for n in nodes if n.startswith("slice")}
    assert set(exported.values.values()) <= there | {"image"}


def test_several_inputs_and_outputs_keep_their_names():
    exported = hub("several")
    assert [v.name for v in exported.onnx.graph.inputs] == ["tokens", "shift"]
    # `shift` is an input too, and ONNX values have one name.
    assert [v.name for v in exported.onnx.graph.outputs] == ["hidden", "scores", "shift_out"]


def test_same_model_same_bytes(residual):
    made, exported = residual
    again = to_onnx(made)
    assert ir.to_proto(again.onnx).SerializeToString() == ir.to_proto(exported.onnx).SerializeToString()
    assert again.values == exported.values


def test_batch_norms_are_exported_in_float():
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval()
    exported = to_onnx(Compressed(capture(module, example("residual", 2))))
    assert kinds(exported.onnx)[0] == "Relu"


def test_refused_operator_names_the_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.transpose(1, 2)).real

    model = capture(Odd().eval(), (torch.randn(2, 3, 3),))
    with pytest.raises(ExportError, match=r"linalg_eig.*test_hub_export\.py:\d+ has no translation.*eager"):
        to_onnx(Compressed(model))


def test_every_matrix_and_feed_is_placed(residual):
    made, exported = residual
    onnx = insert_grids(exported, made, Placement())
    for node in onnx.graph:
        if node.op_type in ("Conv", "Gemm"):
            assert [v.producer().op_type for v in node.inputs] == ["DequantizeLinear"] * 3
            assert [v.producer().inputs[0].dtype.name for v in node.inputs[1:]] == ["INT8", "INT32"]
        if node.op_type in ("Add", "Pad", "Slice", "ReduceMean"):
            assert node.inputs[0].producer().op_type == "DequantizeLinear"
    assert "QuantizeLinear" not in kinds(exported.onnx), "the float model was changed"
    assert onnx.graph.outputs[0].producer().op_type == "Gemm"


def test_moved_values_share_one_grid(residual):
    made, exported = residual
    onnx = insert_grids(exported, made, Placement())
    for node in onnx.graph:
        if node.op_type in ("Pad", "Slice"):
            before = node.inputs[0].producer().inputs[1].const_value.numpy()
            after = next(u.node for u in node.outputs[0].uses()).inputs[1].const_value.numpy()
            assert before == after


def test_signed_placement_shifts_the_codes(residual):
    made, exported = residual
    onnx = insert_grids(exported, made, Placement(signed=True))
    zeros = {n.inputs[2].dtype.name for n in onnx.graph if n.op_type == "QuantizeLinear"}
    assert zeros == {"INT8"}


def test_padded_zero_breaks_the_path_at_channel_pads(residual):
    made, exported = residual
    signed = Placement(signed=True, padded_zero=False)
    onnx = insert_grids(exported, made, signed)
    sources = {n.op_type: n.inputs[0].producer().op_type for n in onnx.graph if n.op_type in ("Pad", "Slice")}
    assert "DequantizeLinear" not in sources.values()
    added = [n for n in onnx.graph if n.op_type == "Add"]
    assert all(v.producer().op_type == "DequantizeLinear" for n in added for v in n.inputs)


def test_without_feed_or_codes_a_matrix_stays_float(residual):
    made, exported = residual
    unfed = Compressed(made.model, made.weights, {k: v for k, v in made.feeds.items() if k != "image"})
    first = next(n for n in insert_grids(exported, unfed, Placement()).graph if n.op_type == "Conv")
    assert first.inputs[1].is_initializer()
    bare = insert_grids(exported, Compressed(made.model, {}, made.feeds), Placement())
    assert all(n.inputs[1].is_initializer() for n in bare.graph if n.op_type in ("Conv", "Gemm"))


def test_a_grid_of_other_than_256_codes_is_refused(residual):
    made, exported = residual
    with pytest.raises(ExportError, match=r"activation image has values 0\.\.15 .*need 256 values"):
        insert_grids(exported, Compressed(made.model, {}, {"image": Grid(0.1, 0, 0, 15)}), Placement())


def test_linear_on_three_dimensions_is_found_by_value():
    made = compressed("several")
    onnx = insert_grids(hub("several"), made, Placement())
    stored = [n for n in onnx.graph if n.op_type in ("MatMul", "Gemm") and not n.inputs[1].is_initializer()]
    assert [n.op_type for n in stored] == ["MatMul", "Gemm"]
    transposed = stored[0].inputs[1].producer()
    assert transposed.inputs[0].const_value.numpy().shape == (6, 12)
    assert transposed.attributes["axis"].as_int() == 1


def test_near_dead_channels_keep_their_bias(residual):
    made, _ = residual
    model = made.model.copy()
    weight = model.tensor("stem.weight").clone()
    weight[0] *= 1e-12
    model.assign("stem.weight", weight)
    again = quantised(model, [example("residual", 8)])
    onnx = insert_grids(to_onnx(again), again, Placement())
    stem = next(n for n in onnx.graph if n.op_type == "Conv")
    bias = stem.inputs[2].producer()
    real = bias.inputs[0].const_value.numpy().astype(float) * bias.inputs[1].const_value.numpy()
    torch.testing.assert_close(torch.tensor(real), model.tensor("stem.bias").double(), rtol=1e-4, atol=1e-4)


def test_slices_in_a_row_become_one(residual):
    _, exported = residual
    (cut,) = [n for n in exported.onnx.graph if n.op_type == "Slice"]
    assert [v.const_value.numpy().tolist() for v in cut.inputs[3:]] == [[2, 3], [2, 2]]
