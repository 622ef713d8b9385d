"""Learned tables of values."""

from __future__ import annotations

import itertools

import pytest
import torch
from laws import Case, TechniqueLaws, make

from tersor.errors import InputError
from tersor.maths.damage import aim, damage, quadratic
from tersor.maths.grid import PerChannel
from tersor.maths.levels import lloyd
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.techniques.gptq import GPTQ
from tersor.techniques.kmeans import KMeans, fitted_table


class TestKMeans(TechniqueLaws):
    names = {"KMeans": KMeans}  # noqa: RUF012
    instances = (KMeans(), KMeans(4), KMeans(3, scaled=False), KMeans(256))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        m = case.matrix
        q = quadratic(case.facts.gram, free_bias=True)
        rows = aim(to_matrix(case.w, m.groups, m.transposed), q)
        table = technique._clustered(rows, q.gram, case.facts.fisher.reshape(rows.shape[:2]))
        value = table.round(rows.flatten(0, 1)).float().reshape(rows.shape)
        return from_matrix(value, case.w.shape, m.groups, m.transposed)


def test_lloyd_finds_the_best_clusters_of_a_few_values():
    values = torch.tensor([-2.1, -2.0, -1.9, 0.0, 0.1, 1.0, 1.1, 3.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 2, 1, 5, 1, 1, 1, 4], dtype=torch.float64)
    found = lloyd(values, weights, 4)

    def lost(centres: torch.Tensor) -> float:
        return float((weights * (values[:, None] - centres).abs().amin(1).square()).sum())

    best = min(
        lost(torch.tensor([0.0, *others], dtype=torch.float64))
        for others in itertools.product((-2.0, -1.9, 1.05, 3.0, 0.1, 1.0), repeat=3)
    )
    assert 0.0 in found
    assert lost(found) <= best + 1e-6


def test_a_fitted_table_is_the_least_squares_answer():
    case = make("linear", 2)
    target, gram = case.w.double()[None], case.facts.gram[:, :-1, :-1]
    fisher = case.facts.fisher.reshape(1, -1)
    table = KMeans(4)._clustered(target, gram, fisher)
    codes = table.codes(target[0])[None]
    fitted = fitted_table(table, codes, target, gram, fisher)

    def lost(listed: torch.Tensor) -> float:
        return damage(table.scale * listed[codes.long()] - target, gram, fisher.flatten())

    least = lost(fitted.listed)
    assert least <= lost(table.listed) + 1e-9
    for k in range(4):
        if fitted.listed[k] != 0:
            for step in (1e-3, -1e-3):
                moved = fitted.listed.clone()
                moved[k] += step
                assert lost(moved) >= least - 1e-6 * least


def test_learned_values_beat_evenly_spaced_ones_of_the_same_bits():
    mine = even = 0.0
    for seed in range(5):
        case = make("convolution", seed)
        mine += case.damage(KMeans(8).fit(case.matrix, case.w, case.facts).dense())
        even += case.damage(GPTQ(3, True, PerChannel()).fit(case.matrix, case.w, case.facts).dense())
    assert mine < even


def test_a_table_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="table of 1 values was asked for; 2 to 256"):
        KMeans(1)
