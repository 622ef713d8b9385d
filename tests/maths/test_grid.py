"""Grids and their scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InputError
from tersor.maths.bits import pack, unpack
from tersor.maths.grid import Integers, PerChannel, PerGroup, PerTensor, absmax, search

quick = settings(max_examples=15, deadline=None, derandomize=True)
kinds = st.builds(
    Integers,
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([PerTensor(), PerChannel(), PerGroup(1), PerGroup(3), PerGroup(100)]),
)


@quick
@given(st.integers(0, 99), kinds)
def test_search_is_never_worse_than_absmax_and_both_round_to_the_nearest_point(seed: int, kind: Integers):
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 7, generator=random, dtype=torch.float64) ** 3
    importance = torch.rand(4, 7, generator=random, dtype=torch.float64)
    error = {}
    for make in (absmax, lambda w, kind: search(w, importance, kind)):
        grid = make(w, kind)
        codes = torch.arange(grid.low, grid.high + 1, dtype=torch.float64)
        points = torch.stack([grid.values(torch.full_like(w, float(c))) for c in codes])
        nearest = (points - w).abs().amin(0)
        assert torch.allclose((grid.round(w) - w).abs(), nearest, atol=1e-12)
        assert len(codes) <= 2**kind.bits
        error[make] = float(((grid.round(w) - w).square() * importance).sum())
    naive, searched = error.values()
    assert searched <= naive + 1e-12


@quick
@given(st.integers(0, 99), kinds.filter(lambda k: not (k.bits == 1 and k.symmetric)))
def test_zero_is_on_the_grid(seed: int, kind: Integers):
    w = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed)) + 2
    assert (search(w, torch.ones(1, 1), kind).round(torch.zeros(4, 7)) == 0).all()


def test_absmax_reaches_the_extremes():
    w = torch.tensor([[-1.0, 0.5, 2.0], [0.1, 0.2, 0.4]])
    grid = absmax(w, Integers(8, True, PerChannel()))
    assert torch.allclose(grid.scale.flatten(), torch.tensor([2.0, 0.4]).double() / 127)
    grid = absmax(w, Integers(8, False, PerTensor()))
    assert grid.scale.item() == pytest.approx(3 / 255)
    assert grid.codes(w).min() == -128


def test_an_outlier_is_clipped_where_that_pays():
    w = torch.cat([torch.linspace(-1, 1, 400), torch.tensor([3.0])])[None]
    kind = Integers(3, True, PerChannel())
    assert search(w, torch.ones(1, 1), kind).scale < 0.6 * absmax(w, kind).scale


def test_empty_groups_are_refused():
    with pytest.raises(InputError, match=r"size 0; it needs at least one column, for example PerGroup\(32\)"):
        PerGroup(0)


@quick
@given(st.integers(0, 99), st.integers(1, 8), st.integers(0, 40))
def test_packed_bits_come_back(seed: int, bits: int, count: int):
    values = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(values, bits)
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), values)
