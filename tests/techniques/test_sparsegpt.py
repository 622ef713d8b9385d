"""Zeros with error feedback: never worse than the criteria, close to brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from laws import Case, TechniqueLaws, every_layout, make, seeds, thorough

from tersor.criteria.magnitude import Magnitude
from tersor.criteria.obd import OBD
from tersor.criteria.wanda import Wanda
from tersor.errors import InputError
from tersor.maths.pattern import Anywhere, EachRow, NofM, Tiles
from tersor.maths.solve import masked_least_squares
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.techniques.sparse import Sparse
from tersor.techniques.sparsegpt import SparseGPT

PATTERNS = (Anywhere(0.5), Anywhere(0.2), EachRow(0.3), NofM(2, 4), NofM(1, 3), Tiles(2, 1, 0.5))


class TestSparseGPT(TechniqueLaws):
    names = {"SparseGPT": SparseGPT}  # noqa: RUF012
    instances = (  # type: ignore[assignment]
        SparseGPT(),
        SparseGPT(Anywhere(0.1), rounds=0),
        SparseGPT(Anywhere(1.0)),
        SparseGPT(EachRow(0.4)),
        SparseGPT(NofM(2, 4)),
        SparseGPT(Tiles(2, 3, 0.3)),
    )
    nested = tuple(SparseGPT(Anywhere(d)) for d in (0.1, 0.3, 0.5, 0.9, 1.0))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        m = case.matrix
        rows = to_matrix(case.w, m.groups, m.transposed)
        kept = technique.pattern.kept(rows.double().abs())
        return from_matrix(rows * kept, case.w.shape, m.groups, m.transposed)


@every_layout
@thorough
@given(seed=seeds)
def test_never_worse_than_the_criteria_with_repair(layout: str, seed: int):
    case = make(layout, seed)
    for pattern in PATTERNS:
        ours = case.damage(SparseGPT(pattern).fit(case.matrix, case.w, case.facts).dense())
        for criterion in (Magnitude(), OBD(), Wanda()):
            theirs = Sparse(pattern, criterion).fit(case.matrix, case.w, case.facts).dense()
            assert ours <= case.damage(theirs) * (1 + 1e-6) + 1e-12, (pattern, criterion)


@every_layout
@thorough
@given(seed=seeds)
def test_exactly_n_of_every_m(layout: str, seed: int):
    case = make(layout, seed)
    m = case.matrix
    kept = SparseGPT(NofM(2, 4)).fit(m, case.w, case.facts).kept
    rows = to_matrix(kept, m.groups, m.transposed).flatten(0, 1)
    full = rows.shape[1] // 4 * 4
    assert (rows[:, :full].unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert (rows[:, full:].sum(1) == -(-(rows.shape[1] - full) // 2)).all()


@every_layout
@thorough
@given(seed=seeds)
def test_it_keeps_the_share_that_was_asked_for(layout: str, seed: int):
    case = make(layout, seed)
    kept = SparseGPT(Anywhere(0.3)).fit(case.matrix, case.w, case.facts).kept
    assert int(kept.sum()) == round(0.3 * case.w.numel())


def test_close_to_the_best_support_that_there_is():
    """Brute force over every support of tiny rows: exact in most, and never far."""
    ratios = []
    for seed in range(12):
        case = make("linear", seed, biased=False)
        c = 9
        gram = case.facts.gram[:, [*range(c), -1]][:, :, [*range(c), -1]]
        facts = Facts(gram, case.facts.fisher[:1], case.facts.activity[:, :, :c])
        tiny = Case(case.matrix, case.w[:1, :c].contiguous(), facts)
        w, h = tiny.w[None].double(), facts.gram[:, :c, :c]
        masks = torch.zeros(1, 126, c, dtype=torch.bool)
        for i, chosen in enumerate(combinations(range(c), 4)):
            masks[0, i, list(chosen)] = True
        every = masked_least_squares(w.expand(1, 126, c), h, masks) - w
        least = float(((every @ h) * every).sum(2).min()) * 0.5 * float(facts.fisher)
        ours = tiny.damage(SparseGPT(EachRow(4 / 9)).fit(tiny.matrix, tiny.w, facts).dense())
        ratios.append(ours / least)
    assert min(ratios) > 1 - 1e-4
    assert sum(r < 1.001 for r in ratios) >= 9
    assert max(ratios) < 1.5


def test_impossible_rounds_are_refused():
    with pytest.raises(InputError, match="rounds counts exchanges"):
        SparseGPT(rounds=-1)
