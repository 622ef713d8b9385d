"""The sum of two techniques."""

from __future__ import annotations

from laws import TechniqueLaws, make

from tersor.maths.pattern import Anywhere
from tersor.techniques.gptq import GPTQ
from tersor.techniques.plus import Plus
from tersor.techniques.sparse import Sparse


class TestPlus(TechniqueLaws):
    instances = (Plus(Sparse(Anywhere(0.1)), GPTQ(4)), Plus(GPTQ(4), GPTQ(4)))  # type: ignore[assignment]
    nested = tuple(Plus(GPTQ(b), GPTQ(4)) for b in (2, 4, 8))  # type: ignore[assignment]
    keeps_zeros = ()  # type: ignore[assignment]


def test_a_few_large_weights_apart_help_a_coarse_grid():
    case = make("linear", 3)
    case.w[0, 0], case.w[3, 5] = 30.0, -25.0
    alone = case.damage(GPTQ(3).fit(case.matrix, case.w, case.facts).dense())
    apart = case.damage(Plus(Sparse(Anywhere(2 / 72)), GPTQ(3)).fit(case.matrix, case.w, case.facts).dense())
    assert apart < alone
