"""Removing columns with repair."""

from __future__ import annotations

import torch
from laws import TechniqueLaws, make

from tersor.maths.damage import best_bias
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts
from tersor.techniques.columns import Columns


class TestColumns(TechniqueLaws):
    names = {"Columns": Columns}  # noqa: RUF012
    instances = (Columns(), Columns(1e-4))  # type: ignore[assignment]
    keeps_zeros = instances  # type: ignore[assignment]


def test_kept_columns_are_the_exact_least_squares_fit():
    case = make("linear", 0)
    c = case.w.shape[1]
    keep = list(range(0, c, 2))
    v = Columns(damping=0.0).fit(case.matrix, case.w, case.facts, keep).dense().double()
    h = case.facts.gram[0]
    columns = [*keep, c]
    exact = torch.linalg.solve(h[columns][:, columns], h[columns, :c] @ case.w.double().mT).mT
    torch.testing.assert_close(v[:, keep], exact[:, :-1], rtol=1e-4, atol=1e-5)
    rows = to_matrix(v, 1)
    added = best_bias(to_matrix(case.w, 1), rows, case.facts.gram)[0]
    torch.testing.assert_close(added, exact[:, -1], rtol=1e-3, atol=1e-4)


def test_drifted_inputs_are_aimed_at_the_original_output():
    case = make("linear", 1)
    gram = case.facts.gram
    size = gram.shape[1]
    generator = torch.Generator().manual_seed(0)
    warp = torch.eye(size, dtype=torch.float64) + 0.2 * torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    warp[-1] = 0
    warp[-1, -1] = 1  # x_now~ = warp x~, the constant staying
    facts = Facts(warp @ gram @ warp.mT, case.facts.fisher, case.facts.activity, gram @ warp.mT)
    v = Columns(damping=0.0).fit(case.matrix, case.w, facts).dense().double()
    back = torch.linalg.inv(warp)
    torch.testing.assert_close(
        v, (torch.cat([case.w.double(), v.new_zeros(len(v), 1)], 1) @ back)[:, :-1], rtol=1e-3, atol=1e-4
    )


def test_nothing_to_do_is_the_same_matrix():
    case = make("linear", 2)
    assert torch.equal(Columns().fit(case.matrix, case.w, case.facts).dense(), case.w)
