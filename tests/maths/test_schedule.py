"""Schedules: they end where they should, never go back, and are what their papers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.maths.schedule import SCHEDULES, cubic, geometric, linear


@pytest.mark.parametrize("name", SCHEDULES)
@given(share=st.floats(0.01, 1), steps=st.integers(1, 50))
def test_descends_to_the_share(name, share, steps):
    left = SCHEDULES[name](share, steps)
    assert len(left) == steps
    assert left[-1] == share
    assert all(a >= b - 1e-12 for a, b in zip([1.0, *left], left, strict=False))


def test_closed_forms():
    assert geometric(0.25, 2) == [0.5, 0.25]
    assert linear(0.4, 3) == pytest.approx([0.8, 0.6, 0.4])
    assert cubic(0.2, 2) == pytest.approx([0.2 + 0.8 / 8, 0.2])
