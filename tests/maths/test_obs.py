"""Structured OBS against exact least squares and brute force."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.obs import Reader, damped, refit, solve, sweep


def problem(seed, rows=3, columns=8, blocks=((0, 1), (2, 3), (4, 5), (6, 7))):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns + 1, columns + 1, generator=generator, dtype=torch.float64)
    x = torch.randn(200, columns + 1, generator=generator, dtype=torch.float64) @ mix
    w = torch.randn(rows, columns + 1, generator=generator, dtype=torch.float64)
    fisher = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    return Reader(w, x.mT @ x / 200, fisher, blocks), x


def lost(w, v, reader):
    d = v - w
    return 0.5 * float((reader.fisher * ((d @ reader.gram) * d).sum(1)).sum())


def kept_columns(reader, blocks):
    gone = {c for b in blocks for c in reader.blocks[b]}
    return [c for c in range(reader.w.shape[1]) if c not in gone]


@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_damage_of_every_width_is_that_of_exact_least_squares(seed):
    reader, x = problem(seed)
    swept = sweep([reader])
    assert sorted(swept.order) == [0, 1, 2, 3]
    for removed in range(5):
        keep = kept_columns(reader, swept.order[:removed])
        exact = torch.linalg.lstsq(x[:, keep], x @ reader.w.mT).solution
        v = torch.zeros_like(reader.w)
        v[:, keep] = exact.mT
        assert swept.damage[removed] == pytest.approx(lost(reader.w, v, reader), rel=1e-6, abs=1e-9)
        torch.testing.assert_close(refit(reader.w, reader.gram, keep), v, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_each_step_is_the_cheapest_by_brute_force(seed):
    reader, _ = problem(seed)
    swept = sweep([reader])
    for step in range(4):
        gone = swept.order[:step]
        costs = {}
        for b in set(range(4)) - set(gone):
            v = refit(reader.w, reader.gram, kept_columns(reader, [*gone, b]))
            costs[b] = lost(reader.w, v, reader)
        assert min(costs, key=costs.get) == swept.order[step]


def test_greedy_is_near_the_best_subset():
    ratios = []
    for seed in range(10):
        reader, _ = problem(seed)
        best = min(
            lost(reader.w, refit(reader.w, reader.gram, kept_columns(reader, pair)), reader)
            for pair in combinations(range(4), 2)
        )
        ratios.append(sweep([reader]).damage[2] / best)
    assert min(ratios) >= 1 - 1e-9
    assert sorted(ratios)[5] < 1.01


def test_damage_never_falls_with_fewer_columns():
    for seed in range(10):
        damage = sweep([problem(seed)[0]]).damage
        assert damage[0] == 0.0
        assert all(a <= b + 1e-12 for a, b in pairwise(damage))


def test_blocks_of_unequal_size():
    reader, _ = problem(3, blocks=((0,), (1, 2, 3), (), (4, 7)))
    swept = sweep([reader])
    assert swept.order[0] == 2  # removing nothing costs nothing
    for removed in range(5):
        v = refit(reader.w, reader.gram, kept_columns(reader, swept.order[:removed]))
        assert swept.damage[removed] == pytest.approx(lost(reader.w, v, reader), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("panel", [1, 5, 64])
def test_many_blocks_are_as_exact_as_few(panel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tersor.maths.obs.PANEL", panel)
    sizes = [1, 2, 0, 3, 1, 4] * 5
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    blocks = [tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    reader, _ = problem(11, rows=6, columns=sum(sizes), blocks=blocks)
    swept = sweep([reader])
    assert sorted(swept.order) == list(range(30))
    for removed in range(0, 31, 3):
        v = refit(reader.w, reader.gram, kept_columns(reader, swept.order[:removed]))
        assert swept.damage[removed] == pytest.approx(lost(reader.w, v, reader), rel=1e-6, abs=1e-9)
        if removed < 30:
            rest = [
                lost(reader.w, refit(reader.w, reader.gram, kept_columns(reader, [*swept.order[:removed], b])), reader)
                for b in swept.order[removed:]
            ]
            assert swept.damage[removed + 1] == pytest.approx(min(rest), rel=1e-6, abs=1e-9)


def test_two_readers_are_judged_together():
    one, two = problem(1)[0], problem(2, rows=5)[0]
    swept = sweep([one, two])
    total = 0.0
    for reader in (one, two):
        v = refit(reader.w, reader.gram, kept_columns(reader, swept.order[:2]))
        total += lost(reader.w, v, reader)
    assert swept.damage[2] == pytest.approx(total, rel=1e-6)


def test_kept_lists_the_last_removed_ascending():
    swept = sweep([problem(5)[0]])
    assert swept.kept(4) == (0, 1, 2, 3)
    assert set(swept.kept(1)) == {swept.order[-1]}
    assert swept.kept(0) == ()


def test_damping_leaves_the_constant_alone_and_revives_dead_inputs():
    gram = torch.diag(torch.tensor([4.0, 0.0, 2.0, 1.0], dtype=torch.float64))
    out = damped(gram, 0.1)
    torch.testing.assert_close(out.diagonal(), torch.tensor([4.2, 2.2, 2.2, 1.0], dtype=torch.float64))


def test_solve_survives_a_singular_system():
    gram = torch.ones(2, 2, dtype=torch.float64)
    out = solve(torch.tensor([[2.0, 2.0]], dtype=torch.float64), gram)
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0]], dtype=torch.float64))


def test_input_is_left_alone_and_answer_repeats():
    reader, _ = problem(7)
    w, gram = reader.w.clone(), reader.gram.clone()
    assert sweep([reader]) == sweep([reader])
    assert torch.equal(reader.w, w)
    assert torch.equal(reader.gram, gram)
