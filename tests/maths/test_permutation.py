"""Orders of columns for n:m: permutations, never worse than none, and on small matrices as good as any."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.permutation import best_order, kept


def value(scores: torch.Tensor, order: torch.Tensor, n: int, m: int) -> float:
    whole = scores.shape[1] // m * m
    runs = scores[:, order[:whole]].unflatten(1, (-1, m)).transpose(0, 1)
    return float(kept(runs, n).sum()) + float(scores[:, order[whole:]].sum())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(2, 19),
    nm=st.sampled_from([(2, 4), (1, 4), (1, 2), (4, 8)]),
    seed=st.integers(0, 99),
)
def test_a_permutation_that_is_never_worse(rows, columns, nm, seed):
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    order = best_order(scores, *nm)
    assert sorted(order.tolist()) == list(range(columns))
    whole = columns // nm[1] * nm[1]
    assert order[whole:].tolist() == list(range(whole, columns))
    assert value(scores, order, *nm) >= value(scores, torch.arange(columns), *nm) - 1e-5
    assert torch.equal(order, best_order(scores, *nm))


@pytest.mark.parametrize("seed", range(5))
def test_two_runs_are_split_in_the_best_way(seed):
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    best = max(value(scores, torch.tensor(p), 1, 2) for p in permutations(range(4)))
    assert value(scores, best_order(scores, 1, 2), 1, 2) == pytest.approx(best)
