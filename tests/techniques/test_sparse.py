"""Zeros by a criterion, with and without repair."""

from __future__ import annotations

import pytest
import torch
from laws import Case, TechniqueLaws, make

from tersor.criteria.activation import Activation
from tersor.criteria.magnitude import Magnitude
from tersor.criteria.obs import OBS
from tersor.criteria.random import Random
from tersor.criteria.taylor import Taylor
from tersor.criteria.wanda import Wanda
from tersor.errors import InputError
from tersor.maths.pattern import Anywhere, EachRow, NofM, Tiles
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.recipe import technique_called
from tersor.techniques.sparse import Sparse


class TestSparse(TechniqueLaws):
    names = {c.__name__: c for c in (Activation, Magnitude, OBS, Random, Taylor, Wanda)}  # noqa: RUF012
    instances = (  # type: ignore[assignment]
        Sparse(),
        Sparse(Anywhere(0.1), Magnitude()),
        Sparse(Anywhere(1.0), Taylor(), repair=False),
        Sparse(EachRow(0.4), Wanda()),
        Sparse(NofM(2, 4), OBS()),
        Sparse(NofM(1, 5), Activation()),
        Sparse(Tiles(2, 3, 0.3), Random(3)),
    )
    repairs = instances[:-1]  # a random choice among fewer columns is another one  # type: ignore[assignment]
    nested = tuple(Sparse(Anywhere(d)) for d in (0.1, 0.3, 0.5, 0.9, 1.0))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        m = case.matrix
        rows = to_matrix(case.w, m.groups, m.transposed)
        kept = technique.pattern.kept(technique.criterion.scores(m, rows.double(), case.facts))
        return from_matrix(rows * kept, case.w.shape, m.groups, m.transposed)


def test_it_keeps_the_share_that_was_asked_for():
    case = make("convolution", 1)
    weight = Sparse(Anywhere(0.25)).fit(case.matrix, case.w, case.facts)
    assert int(weight.kept.sum()) == case.w.numel() // 4
    assert weight.nbytes == case.w.numel() // 8 + case.w.numel()


def test_keeping_everything_changes_nothing():
    case = make("linear", 1)
    assert torch.equal(Sparse(Anywhere(1.0)).fit(case.matrix, case.w, case.facts).dense(), case.w)


def test_without_repair_the_kept_weights_stay_as_they_are():
    case = make("depthwise", 2)
    v = Sparse(NofM(2, 4), repair=False).fit(case.matrix, case.w, case.facts).dense()
    assert torch.equal(v, torch.where(v != 0, case.w, 0.0))


def test_repair_is_the_exact_fit_on_the_support():
    case = make("linear", 3, biased=False)
    v = Sparse(EachRow(0.5)).fit(case.matrix, case.w, case.facts).dense().double()
    h = case.facts.gram[0, :-1, :-1]
    for old, new in zip(case.w.double(), v, strict=True):
        s = new.nonzero()[:, 0]
        torch.testing.assert_close(new[s], torch.linalg.solve(h[s][:, s], h[s] @ old), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["Sparse(pattern=NofM(n=2, m=4), criterion=Wanda(), repair=False)", "SparseGPT()"])
def test_a_recipe_finds_patterns_and_criteria(text: str):
    assert technique_called(text) == technique_called(repr(technique_called(text)))


def test_needs_are_those_of_the_criterion():
    assert Sparse(Anywhere(), Magnitude()).needs == {"gram"}
    assert Sparse(Anywhere(), Taylor()).needs == {"gram", "gradient"}


def test_impossible_densities_are_refused():
    with pytest.raises(InputError, match=r"share of weights kept, in \(0, 1\]"):
        Sparse(Anywhere(1.5))
