"""Least squares from sums against least squares from data."""

from __future__ import annotations

import torch

from tersor.maths.regression import best_ridge, error, matched, moments, optimum


def drawn(seed, positions=400, groups=2, rows=3, columns=5, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, positions, columns, generator=generator)
    truth = torch.randn(groups, rows, columns + 1, generator=torch.Generator().manual_seed(99))
    t = x @ truth[:, :, :-1].mT + truth[:, None, :, -1]
    return x, t + noise * torch.randn(t.shape, generator=generator), truth.double()


def test_optimum_without_ridge_is_least_squares():
    x, t, _ = drawn(0)
    w = torch.zeros(2, 3, 6, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(2, 400, 1)], 2).double()
    exact = torch.linalg.lstsq(ones, t.double()).solution.mT
    torch.testing.assert_close(optimum(w, moments(x, t), 0.0), exact, rtol=1e-4, atol=1e-5)


def test_error_is_the_mean_square():
    x, t, truth = drawn(1)
    got = error(truth, moments(x, t))
    y = x.double() @ truth[:, :, :-1].mT + truth[:, None, :, -1]
    torch.testing.assert_close(got, (t - y).square().mean(1), rtol=1e-3, atol=1e-6)


def test_moments_add_up():
    x, t, _ = drawn(2)
    whole, parts = moments(x, t), moments(x[:, :100], t[:, :100]) + moments(x[:, 100:], t[:, 100:])
    torch.testing.assert_close(whole.cross, parts.cross, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.gram, parts.gram, rtol=1e-5, atol=1e-6)
    assert whole.count == parts.count == 400


def test_few_positions_choose_a_strong_ridge_or_none():
    (x, t, truth), (xc, tc, _) = drawn(3, positions=7, noise=1.0), drawn(4)
    fit, check = moments(x, t), moments(xc, tc)
    weigh = torch.ones(2, 3, dtype=torch.float64)
    assert best_ridge(truth, fit, check, weigh) in (None, 10.0)
    many = moments(*drawn(5, positions=5000)[:2])
    assert best_ridge(torch.zeros_like(truth), many, check, weigh) == 1e-3


def test_without_a_bias_the_constant_column_stays():
    x, t, truth = drawn(6)
    out = optimum(truth, moments(x, t + 5), 1e-3, biased=False)
    assert torch.equal(out[:, :, -1], truth[:, :, -1])


def test_matched_rows_vary_as_wanted_and_keep_their_mean():
    x, t, truth = drawn(7, noise=2.0)
    m = moments(x, t)
    v = matched(optimum(truth, m, 1e-3), m)
    y = x.double() @ v[:, :, :-1].mT + v[:, None, :, -1]
    torch.testing.assert_close(y.var(1, correction=0), t.double().var(1, correction=0), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(y.mean(1), t.double().mean(1), rtol=1e-3, atol=1e-3)


def test_a_dead_row_is_not_scaled():
    x, t, truth = drawn(8)
    dead = torch.zeros_like(truth)
    assert torch.equal(matched(dead, moments(x, t)), dead)
