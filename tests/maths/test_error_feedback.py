"""GPTQ and coordinate descent against brute force."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.damage import by_row
from tersor.maths.gptq import conditional_variances, factor, gptq, polish
from tersor.maths.points import Lattice, Listed
from tersor.maths.solve import masked_least_squares, solve

quick = settings(max_examples=10, deadline=None, derandomize=True)


def problem(seed: int, groups: int = 2, rows: int = 3, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 40, c, generator=random, dtype=torch.float64) @ torch.randn(
        groups, c, c, generator=random, dtype=torch.float64
    )
    return torch.randn(groups, rows, c, generator=random, dtype=torch.float64), x.mT @ x / 40


@quick
@given(st.integers(0, 99))
def test_one_step_is_the_least_squares_answer_of_the_other_columns(seed: int):
    """After the first column is rounded, the others stand where least squares puts them: what GPTQ claims."""
    _, h = problem(seed, groups=1, rows=1)
    order, r = factor(h, 0.0)
    j = int(order[0, 0])
    rest = [k for k in range(5) if k != j]
    error = torch.tensor(0.3, dtype=torch.float64)
    exact = error * torch.linalg.solve(h[0][rest][:, rest], h[0][rest, j])
    found = torch.linalg.solve_triangular(r[0, 1:, 1:], error * r[0, :1, 1:], upper=True, left=False)[0]
    assert torch.allclose(found[torch.argsort(order[0, 1:])], exact, atol=1e-8)


@quick
@given(st.integers(0, 99))
def test_the_damage_is_the_sum_of_the_feedback_errors(seed: int):
    """`d H d^T = sum_j e_j^2 R_jj^2`: checked through the variances, whose product is the determinant of H."""
    _, h = problem(seed)
    assert torch.allclose(conditional_variances(h, 0.0).log().sum(1), torch.logdet(h), atol=1e-6)


@quick
@given(st.integers(0, 99))
def test_near_the_best_of_all_grid_points(seed: int):
    w, h = problem(seed, groups=1, rows=2, c=4)
    lattice = Lattice(torch.full_like(w.mT, 0.8), 1, torch.zeros_like(w.mT), -1, 1)
    points = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)), dtype=torch.float64)
    least = torch.stack([by_row(0.8 * p - w, h) for p in points]).amin(0)
    codes = gptq(w, h, lattice, 1e-6)
    polished = polish(codes, w, h, lattice, 3)
    assert (by_row(0.8 * polished - w, h) <= by_row(0.8 * codes - w, h) + 1e-9).all()
    assert (by_row(0.8 * polished - w, h) >= least - 1e-9).all()
    assert torch.equal(codes, codes.round().clamp(-1, 1))


@quick
@given(st.integers(0, 99))
def test_a_list_of_evenly_spaced_values_is_a_lattice(seed: int):
    w, h = problem(seed)
    scale = torch.full_like(w.mT, 0.3)
    lattice, listed = (
        Lattice(scale, 1, 0 * scale, -3, 3),
        Listed(scale, 1, torch.arange(-3.0, 4.0, dtype=torch.float64)),
    )
    codes = [gptq(w, h, points, 1e-3) for points in (lattice, listed)]
    assert torch.equal(codes[0], codes[1] - 3)
    codes = [polish(c, w, h, points, 2) for c, points in zip(codes, (lattice, listed), strict=True)]
    assert torch.equal(codes[0], codes[1] - 3)


def test_exact_zeros_take_no_part():
    w, h = problem(1)
    w[:, :, 1] = 0
    points = Lattice(torch.full_like(w.mT, 0.01), 1, 0 * w.mT, -127, 127)
    codes = gptq(w, h, points, 1e-2)
    assert codes.shape == w.shape
    assert (codes[..., 1] == 0).all()
    assert (polish(codes, w, h, points, 2)[:, :, 1] == 0).all()


@quick
@given(st.integers(0, 99))
def test_masked_least_squares_is_exact_row_by_row(seed: int):
    w, h = problem(seed, c=6)
    mask = torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = masked_least_squares(w, h, mask)
    assert (found[~mask] == 0).all()
    for g, i in itertools.product(range(2), range(3)):
        kept = mask[g, i].nonzero().flatten()
        best = torch.zeros(6, dtype=torch.float64)
        best[kept] = torch.linalg.solve(h[g][kept][:, kept], h[g][kept] @ w[g, i])
        d, e = found[g, i] - w[g, i], best - w[g, i]
        assert d @ h[g] @ d <= (e @ h[g] @ e) * (1 + 1e-3) + 1e-9


def test_solve_survives_dead_and_repeated_inputs():
    _, h = problem(3)
    h[:, 0], h[:, :, 0] = 0, 0
    h[:, 2], h[:, :, 2] = h[:, 1], h[:, :, 1]
    assert torch.isfinite(solve(h, h, 1e-4)).all()
    assert torch.isfinite(solve(-h, h, 1e-4)).all()
