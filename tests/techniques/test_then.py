"""One technique after another."""

from __future__ import annotations

import pytest
from laws import TechniqueLaws, make

from tersor.maths.pattern import Anywhere
from tersor.techniques.gptq import GPTQ
from tersor.techniques.rounding import Rounding
from tersor.techniques.sparse import Sparse
from tersor.techniques.then import Then


class TestThen(TechniqueLaws):
    instances = (Then(Sparse(Anywhere(0.5)), GPTQ(4)), Then(Sparse(Anywhere(0.3)), Rounding(8)))  # type: ignore[assignment]
    nested = tuple(Then(Sparse(Anywhere(0.5)), GPTQ(b)) for b in (2, 4, 8))  # type: ignore[assignment]


def test_the_second_keeps_the_zeros_of_the_first():
    case = make("convolution", 1)
    v = Then(Sparse(Anywhere(0.4)), GPTQ(3)).fit(case.matrix, case.w, case.facts).dense()
    assert (v != 0).float().mean() <= 0.4 + 1e-6


def test_damages_add_up():
    case = make("linear", 2)
    pruned = Sparse(Anywhere(0.5)).fit(case.matrix, case.w, case.facts).dense()
    both = Then(Sparse(Anywhere(0.5)), GPTQ(4)).fit(case.matrix, case.w, case.facts).dense()
    second = type(case)(case.matrix, pruned, case.facts).damage(both)
    assert case.damage(both) == pytest.approx(case.damage(pruned) + second, rel=1e-3)


def test_needs_are_the_union():
    assert Then(Sparse(), GPTQ()).needs == {"gram", "fisher"}
