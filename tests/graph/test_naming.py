"""Whatever layers are called, they are captured under names that every file can hold; or refused at once, by name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tersor.errors import ModelError
from tersor.graph.model import capture, restore
from tersor.hub.archive import load_program
from tersor.site import matrices
from tersor.store.programs import write_model
from tersor.target import Compressed

ODD = ["first(a)=1&2", "sec'ond@#;|", "first[a]=1&2", "third / ü{}<>$!*?,: x"]


class Odd(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.inner = nn.Module()
        for name in names:
            self.inner.add_module(name, nn.Linear(8, 8))
        self.register_parameter("odd bias", nn.Parameter(torch.randn(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner.children():
            x = layer(x).relu()
        return x + self._parameters["odd bias"]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_odd_names_go_into_every_file(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Odd(ODD).eval(), torch.randn(3, 8)
    with pytest.warns(UserWarning, match=r"renamed: .*'inner.first\(a\)=1&2' is inner.first_a__1_2"):
        model = capture(net, (x,))
    names = [m.name for m in matrices(model)]
    assert names == ["inner.first_a__1_2", "inner.sec_ond____", "inner.first_a__1_2_2", "inner.third___ü___________x"]
    torch.testing.assert_close(model.run(x)[0], net(x))
    path = tmp_path / f"model{ending}"
    write_model(path, Compressed(model))
    if ending == ".onnx":
        onnx.checker.check_model(str(path), full_check=True)
    else:
        torch.testing.assert_close(restore(load_program(path)[0]).run(x)[0], net(x))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_what_torch_cannot_write_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=r"called 'inner\.a.*cannot write quotes, backslashes"):
        capture(Odd([name]).eval(), (torch.randn(2, 8),))
