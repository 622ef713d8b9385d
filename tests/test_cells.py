"""Recurrent layers: their matrices are found, fitted one after the other, and stored."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError
from tersor.graph.model import capture
from tersor.graph.recurrent import recurrences
from tersor.maths.grid import Integers, PerChannel, absmax
from tersor.site import cells
from tersor.store.programs import write_program

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Tagger(nn.Module):
    """Two layers in two directions, then a score for each of five classes."""

    def __init__(self, kind: str = "lstm", batch_first: bool = True, bias: bool = True):
        super().__init__()
        self.cell = KINDS[kind](12, 16, 2, batch_first=batch_first, bidirectional=True, bias=bias)
        self.out = nn.Linear(32, 5)
        self._first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self._first else x.transpose(0, 1)
        given = self.cell(x)[0]
        return self.out(given.mean(1 if self._first else 0))


def sequences(count: int = 96, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(7))
    return torch.randn(count, 9, 12, generator=draw).cumsum(1) @ mix / 4


def made(kind: str = "lstm", **how: bool) -> Tagger:
    torch.manual_seed(3)
    return Tagger(kind, **how).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"batch_first": False}, {"bias": False}], ids=["first", "second", "no bias"])
def test_states_are_what_the_layer_computes(kind: str, how: dict[str, bool]):
    """The last state read, one step further, is the layer's output: layer by layer, in both directions."""
    module, x = made(kind, **how), sequences(4)
    model = capture(module, (x,))
    (recurrence,) = recurrences(model)
    start = tuple(torch.zeros(4, 4, 16) for _ in range(2 if kind == "lstm" else 1))
    given, y = [], x
    for layer in range(2):
        y, read = recurrence.states(layer, y, start, model)
        given.append(read)
        assert torch.equal(read[0][:, 1:], y[:, :-1, :16])
        assert torch.equal(read[1][:, :-1], y[:, 1:, 16:])
        assert not read[0][:, 0].any()
        assert not read[1][:, -1].any()
    expected = module.cell(x if how.get("batch_first", True) else x.transpose(0, 1))[0]
    torch.testing.assert_close(y if how.get("batch_first", True) else y.transpose(0, 1), expected)
    assert len(cells(model)) == 8
    assert {m.bias is None for m in cells(model)} == {not how.get("bias", True)}


def lost(module: nn.Module, bits: int | str) -> tuple[float, tersor.Quantized]:
    """The squared error of the output, and what was made."""
    found = tersor.quantize(module, [(x,) for x in sequences().split(32)], weights=bits, metric="agreement")
    assert isinstance(found, tersor.Quantized)
    return apart(found.module, module), found


@torch.no_grad()
def apart(a: nn.Module, b: nn.Module) -> float:
    x = sequences(seed=5)
    return float((a(x) - b(x)).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_cells_lose_less_than_rounded_ones(kind: str):
    module = made(kind)
    ours, found = lost(module, 3)
    rounded = copy.deepcopy(module)
    for name, parameter in rounded.named_parameters():
        bits = found.weights.get(name, found.weights.get(name.removesuffix(".weight")))
        if bits is not None:
            parameter.data = absmax(parameter.data, Integers(bits, True, PerChannel())).round(parameter.data)
    assert ours < 0.7 * apart(rounded, module)
    assert found.weights["cell.weight_hh_l1_reverse"] == 3
    assert found.weights["out"] == 8
    assert found.bytes[1] < 0.4 * found.bytes[0]


def test_other_formats_and_excluded_matrices():
    module = made()
    _, table = lost(module, "codebook16")
    assert table.weights["cell.weight_ih_l0"] == 4
    some = tersor.quantize(module, [(sequences(),)], weights=4, exclude=["cell.weight_hh_l0"], metric="agreement")
    assert "cell.weight_hh_l0" not in some.weights
    with pytest.raises(InputError, match=r"exclude names 'cell.weight_hh_l7'"):
        tersor.quantize(module, [(sequences(),)], weights=4, exclude=["cell.weight_hh_l7"], metric="agreement")


def test_few_bits_of_activations_leave_the_cells_inputs_alone():
    module = made()
    found = tersor.quantize(module, [(sequences(),)], weights=8, activations=4, metric="agreement")
    assert isinstance(found, tersor.Quantized)
    x = sequences(seed=5)
    with torch.no_grad():
        assert float((found.module(x) - module(x)).abs().max()) < 0.2


def test_the_archive_loads_without_tersor_and_computes_the_same(tmp_path: Path):
    _, found = lost(made(), 4)
    write_program(tmp_path / "small.pt2", found.model)
    x = sequences(8, 5)
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    torch.testing.assert_close(loaded(x), found.module(x))


@pytest.mark.realdata
def test_a_character_model_keeps_its_loss_at_four_bits(loaders: ModuleType):
    module, vocabulary = loaders.textgenrnn()
    path = loaders.p("textgenrnn", "hacker_news_2000.txt")
    lines = Path(path).read_text(encoding="utf8").split("\n")
    x, _ = loaders.char_data(lines[201:260], vocabulary)
    judged, labels = loaders.char_data(lines[301:330], vocabulary)
    found = tersor.quantize(module, [(p,) for p in x[::4].split(64)], weights=4, groups=32, metric="agreement")
    assert isinstance(found, tersor.Quantized)
    assert {"r1.weight_ih_l0", "r1.weight_hh_l0", "r2.weight_ih_l0", "r2.weight_hh_l0", "out", "att"} <= set(
        found.weights
    )
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(m(judged), labels) for m in (module, found.module))
    assert float(after - before) < 0.07  # 0.042 to 0.058 over three draws, the attention in codes, too
