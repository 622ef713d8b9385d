"""The quadratic against brute force."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.damage import aim, best_bias, by_row, damage, quadratic

quick = settings(max_examples=10, deadline=None, derandomize=True)


def inputs(seed: int, groups: int, c: int, n: int = 60) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, n, c, generator=random, dtype=torch.float64) @ torch.randn(
        groups, c, c, generator=random, dtype=torch.float64
    )
    return torch.cat([x + 1, torch.ones(groups, n, 1, dtype=torch.float64)], 2)


def gram(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    return x.mT @ (x if y is None else y) / x.shape[1]


@quick
@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_damage_is_half_the_weighted_mean_square_of_the_change_of_outputs(seed: int, groups: int, rows: int, c: int):
    x = inputs(seed, groups, c)
    random = torch.Generator().manual_seed(seed + 1)
    delta = torch.randn(groups, rows, c + 1, generator=random, dtype=torch.float64)
    fisher = torch.rand(groups * rows, generator=random, dtype=torch.float64)
    total = 0.0
    for g in range(groups):
        for i in range(rows):
            total += 0.5 * float(fisher[g * rows + i] * (x[g] @ delta[g, i]).square().mean())
    assert abs(damage(delta, gram(x), fisher) - total) <= 1e-9 * (1 + total)
    delta[:, :, -1] = 0
    assert abs(damage(delta[:, :, :-1], gram(x), fisher) - damage(delta, gram(x), fisher)) < 1e-9


@quick
@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 5))
def test_best_bias_is_the_least_squares_one(seed: int, groups: int, c: int):
    x, now = inputs(seed, groups, c), inputs(seed + 500, groups, c)
    random = torch.Generator().manual_seed(seed)
    w, v = torch.randn(2, groups, 3, c, generator=random, dtype=torch.float64)
    for seen, drift in ((x, None), (now, gram(x, now))):
        missing = (w @ x[:, :, :-1].mT - v @ seen[:, :, :-1].mT).mean(2)
        assert torch.allclose(best_bias(w, v, gram(seen), drift), missing, atol=1e-9)


@quick
@given(st.integers(0, 99), st.booleans())
def test_the_quadratic_with_a_free_bias_is_the_damage_with_the_best_bias(seed: int, free: bool):
    x = inputs(seed, 2, 4)
    w, v = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = quadratic(gram(x), None, free)
    bias = best_bias(w, v, gram(x)) if free else torch.zeros(2, 3, dtype=torch.float64)
    assert torch.allclose(by_row(v - w, q.gram), by_row(torch.cat([v - w, bias[..., None]], 2), gram(x)))


@quick
@given(st.integers(0, 99), st.booleans())
def test_aim_is_the_least_squares_fit_to_the_original_outputs(seed: int, free: bool):
    x, now = inputs(seed, 2, 5), inputs(seed + 500, 2, 5)
    w = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keep = [0, 2, 3]
    found = aim(w, quadratic(gram(now), gram(x, now), free), keep, damping=1e-12)
    columns = [*keep, 5] if free else keep
    exact = torch.linalg.lstsq(now[:, :, columns], x[:, :, :5] @ w.mT).solution[:, :3].mT
    assert torch.allclose(found[:, :, keep], exact, atol=1e-6)
    assert (found[:, :, [1, 4]] == 0).all()


def test_aim_without_drift_or_drops_is_the_weight_itself():
    w = torch.randn(1, 3, 4, dtype=torch.float64)
    assert torch.equal(aim(w, quadratic(gram(inputs(1, 1, 4)))), w)
