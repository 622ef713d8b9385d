"""Unstructured zeros."""

from __future__ import annotations

import pytest
import torch
from laws import Case, TechniqueLaws, make

from tersor.errors import InputError
from tersor.techniques.magnitude import Magnitude


class TestMagnitude(TechniqueLaws):
    instances = (Magnitude(), Magnitude(0.1), Magnitude(1.0))  # type: ignore[assignment]
    nested = tuple(Magnitude(d) for d in (0.1, 0.3, 0.5, 0.9, 1.0))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        count = round(technique.density * case.w.numel())
        least = case.w.abs().flatten().sort(descending=True).values[count - 1]
        return case.w * (case.w.abs() >= least)


def test_it_keeps_the_share_that_was_asked_for():
    case = make("convolution", 1)
    weight = Magnitude(0.25).fit(case.matrix, case.w, case.facts)
    assert int(weight.kept.sum()) == case.w.numel() // 4
    assert weight.nbytes == case.w.numel() // 8 + case.w.numel()


def test_keeping_everything_changes_nothing():
    case = make("linear", 1)
    assert torch.equal(Magnitude(1.0).fit(case.matrix, case.w, case.facts).dense(), case.w)


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5])
def test_impossible_densities_are_refused(density: float):
    with pytest.raises(InputError, match=r"share of weights kept, in \(0, 1\]"):
        Magnitude(density)
