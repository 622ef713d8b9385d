"""No grid on what leaves the network: a quiet channel of an output is as near to the original as a loud one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tersor.calibrated import prepared
from tersor.feeds import feeds_of
from tersor.fitting import Decisions, fit
from tersor.graph.model import capture
from tersor.hub.export import to_onnx
from tersor.hub.insertion import insert_grids
from tersor.hub.placement import leaving
from tersor.hub.simulate import simulate
from tersor.profile import measure
from tersor.recovery.network import Network
from tersor.rewrites.store_quantised import store_quantised
from tersor.site import matrices
from tersor.target import Compressed
from tersor.targets import onnxruntime, openvino
from tersor.techniques.gptq import GPTQ

LOUD = torch.tensor([1.0, 30.0, 1000.0])
PLACEMENTS = {
    f"{name}:{word}": placement
    for name, target in (("onnxruntime", onnxruntime), ("openvino", openvino))
    for word, placement in target.PLACEMENTS.items()
}


class Net(nn.Module):
    """A convolution whose three channels differ a thousandfold, put out in one way or another."""

    def __init__(self, out: Callable[[nn.Module, Tensor, Tensor], object]):
        super().__init__()
        self.enter, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.other, self.after = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 4, 3, padding=1)
        with torch.no_grad():
            for each in (self.last, self.other):
                each.weight.mul_(LOUD[:, None, None, None])
                each.bias.mul_(LOUD)
            self.after.weight.div_(LOUD[None, :, None, None])
        self.out = out

    def forward(self, x: Tensor) -> object:
        h = self.enter(x).relu()
        return self.out(self, h, self.last(h))


OUTS: dict[str, Callable[[Net, Tensor, Tensor], object]] = {
    "itself": lambda net, h, y: y,
    "view": lambda net, h, y: y.flatten(2),
    "slices": lambda net, h, y: (y[:, :1], y[:, 1:]),
    "concatenation": lambda net, h, y: torch.cat([y, net.other(h)], 1),
    "sum": lambda net, h, y: y + net.other(h),
    "mean": lambda net, h, y: y.mean((2, 3)),
    "read inside": lambda net, h, y: (y, net.after(y)),
    "view read inside": lambda net, h, y: (y.flatten(2), net.after(y.relu())),
    "sum read inside": lambda net, h, y: (y, net.after(y + net.other(h))),
}


@cache
def fitted(name: str) -> tuple[Compressed, list[Tensor], Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 6, 6)
    model = capture(Net(OUTS[name]).eval(), (x[:2],))
    ground, profile = prepared(model, [(x,)])
    chosen = {m.name: GPTQ() for m in matrices(ground)}
    made = fit(ground, [(x,)], profile, Decisions(techniques=chosen, feeds="static"))
    return made, list(model.run(x)), x


def close(given: object, wanted: list[Tensor]) -> None:
    """Each channel is near for its own size; of what is computed further on, all of it is."""
    for a, b in zip(given, wanted, strict=True):
        a = torch.as_tensor(a)
        for channel in range(b.shape[1]) if len(b) and b.shape[1] != 4 else ():
            part, like = a[:, channel], b[:, channel]
            error = (part - like).square().mean().sqrt() / like.square().mean().sqrt()
            assert error < 0.05, (channel, float(error))


@pytest.mark.parametrize("name", OUTS)
def test_every_output_is_near_channel_by_channel(name: str):
    made, wanted, x = fitted(name)
    close(store_quantised(made).run(x), wanted)
    exported = to_onnx(made)
    for word, placement in PLACEMENTS.items():
        close(simulate(insert_grids(exported, made, placement), [x.numpy()], word.partition(":")[0]), wanted)


@pytest.mark.parametrize("name", ["itself", "view read inside"])
def test_training_rounds_as_the_archive_does(name: str):
    made, _, x = fitted(name)
    seen = Network(made)((x,), training=False).outputs
    for a, b in zip(seen.values(), store_quantised(made).run(x), strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", OUTS)
def test_no_codes_come_to_an_output(name: str):
    made, _, _ = fitted(name)
    for placement in PLACEMENTS.values():
        graph = insert_grids(to_onnx(made), made, placement).graph
        producers = [value.producer() for value in leaving(graph)]
        matrices_before = [node for node in producers if node is not None and node.op_type == "Conv"]
        assert matrices_before
        assert not [node.name for node in producers if node is not None and node.op_type == "DequantizeLinear"]


def test_what_is_read_inside_as_well_still_has_its_grid_there():
    made, _, _ = fitted("read inside")
    graph = insert_grids(to_onnx(made), made, onnxruntime.PLACEMENTS["standard"]).graph
    fed = [node.inputs[0].producer() for node in graph if node.op_type == "Conv"]
    assert [node is not None and node.op_type for node in fed] == ["DequantizeLinear"] * 3


def test_dynamic_feeds_leave_the_outputs_alone():
    made, _, x = fitted("itself")
    found = feeds_of(made.model, measure(made.model, [(x,)]).ranges, "dynamic")
    output = next(node for node in made.model.graph.nodes if node.op == "output").all_input_nodes[0]
    assert found
    assert output.name not in found
    assert output.name not in made.feeds
