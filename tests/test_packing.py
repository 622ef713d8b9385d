"""Lossless packing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import every_layout, make, seeds, thorough

from tersor.forms.affine import Affine
from tersor.forms.bitmask import Bitmask
from tersor.forms.dense import Dense
from tersor.forms.nofm import PackedNofM
from tersor.forms.sum import Sum
from tersor.maths.pattern import NofM
from tersor.packing import smallest
from tersor.techniques.rounding import Rounding


@every_layout
@thorough
@given(seed=seeds, sparse=st.floats(0, 1), bits=st.integers(1, 8))
def test_same_value_and_never_larger(layout: str, seed: int, sparse: float, bits: int):
    case = make(layout, seed)
    mask = torch.rand(case.w.shape, generator=torch.Generator().manual_seed(seed)) < sparse
    w = case.w.masked_fill(mask, 0)
    grid = Rounding(bits, False).fit(case.matrix, w, case.facts)
    for weight in (Dense(w), grid, Sum(Dense(w), grid)):
        packed = smallest(weight)
        assert torch.equal(packed.dense().view(torch.int32), weight.dense().view(torch.int32))
        assert packed.nbytes <= weight.nbytes


def test_sparse_becomes_a_bitmask_and_full_stays():
    w = torch.zeros(8, 8)
    w[0, 0] = 1.5
    assert isinstance(smallest(Dense(w)), Bitmask)
    assert isinstance(smallest(Dense(w + 1)), Dense)


def test_a_negative_zero_is_not_lost():
    w = torch.zeros(8, 8)
    w[0, 0] = -0.0
    assert torch.equal(smallest(Dense(w)).dense().view(torch.int32), w.view(torch.int32))


def test_eight_bits_that_use_four_are_stored_in_four():
    case = make("linear", 1)
    weight = Rounding(4).fit(case.matrix, case.w, case.facts)
    wide = Affine(
        (weight.codes.to(torch.int16).flatten() + 128).to(torch.uint8),
        weight.scale,
        weight.zero,
        8,
        -127,
        weight.run,
        weight.shape,
    )
    packed = smallest(wide)
    assert isinstance(packed, Affine)
    assert packed.bits == 4
    assert packed.nbytes == weight.nbytes


def test_one_of_four_becomes_n_of_m_and_loses_nothing():
    rows = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    w = torch.where(NofM(1, 4).kept(rows[None].abs())[0], rows, 0.0)
    packed = smallest(Dense(w))
    assert isinstance(packed, PackedNofM)
    assert (packed.n, packed.m) == (1, 4)
    assert packed.nbytes == 32 * 4 + 8
    assert torch.equal(packed.dense(), w)
