"""The exact knapsack."""

from __future__ import annotations

import numpy as np
import pytest
from laws_planner import PlannerLaws

from tersor.errors import BudgetError
from tersor.plan import Budget, Option, Pair, Table
from tersor.planners.knapsack import cost, knapsack


class TestKnapsack(PlannerLaws):
    planner = staticmethod(knapsack)


def large(rows: int, options: int, seed: int, pairs: bool = False) -> Table:
    draw = np.random.default_rng(seed)
    table = {}
    for r in range(rows):
        size = np.sort(draw.uniform(0.1, 1, options)) * draw.uniform(1e3, 1e5)
        damage = draw.uniform(1e-6, 1e-1) * np.exp(-8 * size / size.max()) * draw.uniform(0.8, 1.2, options)
        seconds = 1e-8 * size * draw.uniform(0.8, 1.2, options)
        numbers = zip(damage, seconds, size, strict=True)
        table[f"r{r}"] = [Option(f"o{i}", float(d), float(s), float(b)) for i, (d, s, b) in enumerate(numbers)]
    grid = np.outer(np.linspace(1, 0.1, options), np.linspace(1, 0.1, options)) * 1e-4
    zero = tuple(map(tuple, np.zeros((options, options))))
    joined = [Pair(f"r{r}", f"r{r + 1}", tuple(map(tuple, grid)), zero) for r in range(rows - 1)] if pairs else []
    return Table(table, joined)


def middle(table: Table) -> Budget:
    first = cost(table, {row: options[0].name for row, options in table.rows.items()})
    last = cost(table, {row: options[-1].name for row, options in table.rows.items()})
    return Budget(seconds=(first[1] + last[1]) / 2, nbytes=(first[2] + last[2]) / 2)


def test_sixty_rows_of_twenty_options() -> None:
    table = large(60, 20, seed=0)
    plan = knapsack(table, middle(table))
    assert not plan.notes
    assert plan.damage * (1 - 1e-5) <= plan.at_best <= plan.damage


def test_a_chain_of_pairs() -> None:
    table = large(12, 6, seed=1, pairs=True)
    plan = knapsack(table, middle(table))
    assert not plan.notes
    assert plan.at_best == pytest.approx(plan.damage, rel=1e-5)


def test_small_damages_beside_huge_ones_stay_exact() -> None:
    rows = {f"r{i}": [Option("keep", 0.0, 2), Option("a", 1e-9 * (i + 1), 1), Option("b", 1e6, 0)] for i in range(6)}
    plan = knapsack(Table(rows), Budget(seconds=10))
    assert plan.damage == pytest.approx(3e-9)
    assert plan.choice == {"r0": "a", "r1": "a", "r2": "keep", "r3": "keep", "r4": "keep", "r5": "keep"}


def test_a_budget_is_kept_to_the_byte() -> None:
    rows = {f"r{i}": [Option("large", 0, 0, 1_000_001), Option("small", 1, 0, 1_000_000)] for i in range(3)}
    assert knapsack(Table(rows), Budget(nbytes=3_000_001)).nbytes == 3_000_001
    assert knapsack(Table(rows), Budget(nbytes=3_000_000)).damage == 3
    with pytest.raises(BudgetError, match="smallest reachable size is 3000 kB"):
        knapsack(Table(rows), Budget(nbytes=2_999_999))


def test_of_equal_damage_the_cheaper_is_taken() -> None:
    table = Table({"a": [Option("slow", 0, 2, 2), Option("fast", 0, 1, 2), Option("same", 0, 1, 2)]})
    assert knapsack(table, Budget()).choice == {"a": "fast"}


def test_infinite_damage_is_never_chosen_and_nan_is_refused() -> None:
    table = Table({"a": [Option("never", float("inf"), 0), Option("fine", 1, 1)]})
    assert knapsack(table, Budget()).choice == {"a": "fine"}
    with pytest.raises(BudgetError, match="smallest reachable time is 1000 ms"):
        knapsack(table, Budget(seconds=0.5))
    with pytest.raises(BudgetError, match="No option of 'a' has a finite damage"):
        knapsack(Table({"a": [Option("never", float("inf"))]}), Budget())
    with pytest.raises(ValueError, match="row 'a' holds NaN"):
        knapsack(Table({"a": [Option("x", float("nan"))]}), Budget())


def test_a_table_without_rows() -> None:
    assert knapsack(Table({}, seconds=1), Budget(seconds=2)).seconds == 1
    with pytest.raises(BudgetError):
        knapsack(Table({}, seconds=1), Budget(seconds=0.5))
