"""Patterns: how many are kept, which of equals, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import thorough

from tersor.errors import InputError
from tersor.maths.pattern import Anywhere, EachRow, NofM, Pattern, Tiles

PATTERNS = (Anywhere(0.3), EachRow(0.3), NofM(2, 4), NofM(3, 5), Tiles(2, 3, 0.4), Tiles(16, 1, 0.5))


@thorough
@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 13)), st.integers(0, 99))
def test_the_best_of_each_cell_are_kept(shape: tuple[int, int, int], seed: int):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for pattern in PATTERNS:
        kept = pattern.kept(scores)
        assert kept.shape == scores.shape
        assert kept.dtype == torch.bool
        assert kept.any()
        assert torch.equal(pattern.kept(scores * kept), kept) or isinstance(pattern, Tiles)
    rows = EachRow(0.3).kept(scores)
    assert (rows.sum(2) == max(1, round(0.3 * shape[2]))).all()
    assert int(Anywhere(0.3).kept(scores).sum()) == max(1, round(0.3 * scores.numel()))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_first_of_equals_is_kept(pattern: Pattern):
    kept = pattern.kept(torch.ones(1, 32, 12, dtype=torch.float64))
    assert torch.equal(kept, pattern.kept(torch.full((1, 32, 12), 7.0, dtype=torch.float64)))
    assert kept[0, 0, 0]


def test_n_of_m_by_hand():
    scores = torch.tensor([[[1.0, 4, 2, 3, 9, 0, 0, 0, 5, 6, 7]]])
    assert NofM(2, 4).kept(scores)[0, 0].int().tolist() == [0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert NofM(1, 4).kept(scores)[0, 0].int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_tiles_by_hand():
    scores = torch.zeros(1, 4, 5)
    scores[0, 3, 4], scores[0, 0, 1] = 2, 1
    kept = Tiles(2, 2, 2 / 6).kept(scores)[0].int().tolist()
    assert kept == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_densities_are_refused(density: float):
    for pattern in (Anywhere, EachRow, lambda d: Tiles(2, 2, d)):
        with pytest.raises(InputError, match=r"density is the share of weights kept, in \(0, 1\]"):
            pattern(density)


def test_impossible_counts_are_refused():
    for n, m in ((5, 4), (0, 4), (-1, 2)):
        with pytest.raises(InputError, match=r"NofM\(n=.*1 <= n <= m"):
            NofM(n, m)
    with pytest.raises(InputError, match="at least one row and one column"):
        Tiles(0, 1)
