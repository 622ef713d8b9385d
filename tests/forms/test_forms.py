"""Every form obeys the laws."""

from __future__ import annotations

import itertools

import torch
from laws import LAYOUTS, FormLaws, make

from tersor.forms.affine import Affine, affine
from tersor.forms.bitmask import bitmask
from tersor.forms.codebook import Codebook, codebook
from tersor.forms.dense import Dense
from tersor.forms.half import half
from tersor.forms.nofm import n_of_m
from tersor.forms.sum import Sum
from tersor.maths.grid import Integers, PerChannel, PerGroup, PerTensor, absmax
from tersor.maths.levels import levels_called
from tersor.maths.pattern import NofM
from tersor.maths.unfold import from_matrix, to_matrix


def grids(seed: int) -> list[Affine]:
    made = []
    for layout in LAYOUTS:
        case = make(layout, seed)
        m = case.matrix
        rows = to_matrix(case.w, m.groups, m.transposed).flatten(0, 1)
        bits = 1 + seed % 8
        for symmetric in (True, False):
            for granularity in (PerTensor(), PerChannel(), PerGroup(5)):
                grid = absmax(rows, Integers(bits, symmetric, granularity))
                made.append(affine(grid.codes(rows), grid, bits, tuple(case.w.shape), m.groups, m.transposed))
    return made


class TestDense(FormLaws):
    def weights(self, seed: int):
        return [Dense(make(layout, seed).w) for layout in LAYOUTS]


class TestAffine(FormLaws):
    def weights(self, seed: int):
        return grids(seed)


def tables(seed: int) -> list[Codebook]:
    made = []
    for layout, name in itertools.product(LAYOUTS, ("nf4", "mxfp4", "fp8", "log3")):
        case = make(layout, seed)
        m, kind = case.matrix, levels_called(name, PerGroup(5) if seed % 2 else None)
        rows = to_matrix(case.w, m.groups, m.transposed).flatten(0, 1)
        grid = absmax(rows, kind)
        made.append(codebook(grid.codes(rows), grid, tuple(case.w.shape), m.groups, m.transposed, kind.shifted))
    return made


class TestCodebook(FormLaws):
    def weights(self, seed: int):
        return tables(seed)


class TestHalf(FormLaws):
    def weights(self, seed: int):
        return [half(make(layout, seed).w, dtype) for layout in LAYOUTS for dtype in (torch.float16, torch.bfloat16)]


class TestBitmask(FormLaws):
    def weights(self, seed: int):
        drawn = [make(layout, seed).w for layout in LAYOUTS]
        return [bitmask(w, w.abs() > 0.1 * (seed % 20)) for w in drawn]


class TestPackedNofM(FormLaws):
    def weights(self, seed: int):
        drawn = [(make(layout, seed), 2 + seed % 15) for layout in LAYOUTS]
        return [
            n_of_m(c.w * (c.w.abs() > 0.1 * (seed % 20)), m, c.matrix.groups, c.matrix.transposed) for c, m in drawn
        ]


class TestSum(FormLaws):
    def weights(self, seed: int):
        return [Sum(bitmask(w.dense(), w.dense().abs() > 2), w) for w in grids(seed)]


def test_codes_of_a_transposed_convolution_stand_in_the_parameters_order():
    case = make("transposed", 1)
    rows = to_matrix(case.w, 1, True)[0]
    grid = absmax(rows, Integers(8, True, PerChannel()))
    weight = affine(grid.codes(rows), grid, 8, tuple(case.w.shape), 1, True)
    assert weight.axis == 1
    by_axis = weight.codes.float() * weight.scale.reshape(1, -1, 1, 1)
    assert torch.equal(by_axis, weight.dense())
    assert (weight.dense() - case.w).abs().max() <= weight.scale.max() / 2 + 1e-6


def test_the_layout_of_packed_bits_is_fixed():
    """Golden bytes: what is on disk today must be read tomorrow."""
    w = torch.tensor([[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]])
    grid = absmax(w, Integers(3, True, PerChannel()))
    weight = affine(grid.codes(w), grid, 3, (1, 7), 1, False)
    assert weight.packed.tolist() == [0b11010001, 0b01011000, 0b00011111]
    assert weight.scale.tolist() == [[1.0]]
    assert bitmask(
        torch.tensor([0.0, 5, 0, 0, 0, 0, 0, 0, 7]), torch.tensor([0, 1, 0, 0, 0, 0, 0, 0, 1]).bool()
    ).mask.tolist() == [2, 1]


def test_n_of_m_keeps_the_value_and_stores_no_more_than_n_a_run():
    for layout in LAYOUTS:
        case = make(layout, 3)
        m = case.matrix
        rows = to_matrix(case.w, m.groups, m.transposed)
        w = from_matrix(rows * NofM(2, 4).kept(rows.abs()), case.w.shape, m.groups, m.transposed)
        weight = n_of_m(w, 4, m.groups, m.transposed)
        assert weight.n == 2
        assert torch.equal(weight.dense(), w)
        full, left = divmod(rows.shape[2], 4)
        count = rows.shape[0] * rows.shape[1] * (2 * full + min(2, left))
        assert weight.nbytes == 4 * count + -(-2 * count // 8)


def test_the_layout_of_n_of_m_is_fixed():
    weight = n_of_m(torch.tensor([[0.0, 5, 0, 6, 7, 0, 0, 0, 0, 8]]), 4)
    assert weight.values.tolist() == [5, 6, 7, 0, 0, 8]
    assert weight.places.tolist() == [0b01001101, 0b0100]
