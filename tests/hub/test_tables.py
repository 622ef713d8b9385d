from __future__ import annotations

import numpy as np
import pytest
import torch
from hubzoo import captured, example, quantised

from tersor.graph.model import capture
from tersor.hub.export import to_onnx
from tersor.hub.fidelity import compare
from tersor.hub.insertion import insert_grids
from tersor.profile import Facts
from tersor.site import tables
from tersor.target import Compressed
from tersor.targets import onnxruntime, openvino
from tersor.techniques.rounding import Rounding

RUN = {"onnxruntime": onnxruntime._outputs, "openvino": openvino._outputs}


def with_tables() -> Compressed:
    """The network that looks up words and places, both tables in 8 bits."""
    made = quantised(captured("positions"), [example("positions", 16, seed) for seed in (10, 11)])
    model, weights = made.model.copy(), dict(made.weights)
    for table in tables(model):
        columns = table.shape[1]
        facts = Facts(
            torch.eye(columns + 1).double()[None],
            torch.ones(len(model.tensor(table.weight))),
            torch.ones(1, 2, columns),
        )
        weights[table.weight] = Rounding(8).fit(table, model.tensor(table.weight), facts)
        model.assign(table.weight, weights[table.weight].dense())
    return Compressed(model, weights, made.feeds)


PLACED = {"onnxruntime": onnxruntime.PLACEMENTS["standard"], "openvino": openvino.PLACEMENTS["standard"]}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_average_over_a_sequence_is_what_it_should_be(runtime: str):
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.first(x))
            moved = self.last(hidden.transpose(1, 2).mean(2))  # averaged after it was moved
            return self.last(hidden).mean(1) + self.last(hidden.mean(1)) + moved  # read by a matrix, and averaged

    torch.manual_seed(0)
    model = capture(Mean().eval(), (torch.randn(2, 5, 6),))
    x = torch.randn(64, 5, 6)
    made = quantised(model, [(x,)])
    onnx = insert_grids(to_onnx(made), made, PLACED[runtime])
    (got,) = RUN[runtime](onnx, [x.numpy()])
    wanted = made.model.module(x).detach().numpy()
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_rows_of_codes_are_looked_up(runtime: str):
    made = with_tables()
    onnx = insert_grids(to_onnx(made), made, PLACED[runtime])
    held = {
        name: value.const_value.numpy()
        for name, value in onnx.graph.initializers.items()
        if value.const_value is not None
    }
    assert {"words.weight", "places.weight"}.isdisjoint(held)
    assert held["words.weight_codes"].dtype == np.int8
    assert held["places.weight_scale"].shape == (4000, 1)
    (ids,) = (t.numpy() for t in example("positions", 64, seed=5))
    fidelity = compare(onnx, [ids], runtime, RUN[runtime])
    assert fidelity.agreement >= (1.0 if runtime == "onnxruntime" else 0.98)
    wanted = made.model.module(torch.from_numpy(ids)).detach().numpy()
    (got,) = RUN[runtime](onnx, [ids])
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
