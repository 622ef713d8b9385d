"""The laws of a planner: a plug-in's test inherits `PlannerLaws` and names its planner."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import BudgetError
from tersor.plan import Budget, Option, Pair, Plan, Planner, Table

numbers = st.integers(0, 30).map(float) | st.floats(1e-3, 30)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Up to four rows of up to four options, and pair costs between some of the rows."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = {
        f"row {r}": [Option(f"option {i}", draw(numbers), draw(numbers), draw(numbers)) for i in range(size)]
        for r, size in enumerate(sizes)
    }
    couples = list(itertools.combinations(range(len(sizes)), 2))
    chosen = draw(st.lists(st.sampled_from(couples), max_size=3, unique=True)) if couples else []
    pairs = [
        Pair(f"row {a}", f"row {b}", _grid(draw, sizes[a], sizes[b]), _grid(draw, sizes[a], sizes[b]))
        for a, b in chosen
    ]
    return Table(rows, pairs, draw(numbers), draw(numbers))


def _grid(draw: st.DrawFn, n: int, m: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(draw(numbers) for _ in range(m)) for _ in range(n))


def every_plan(table: Table) -> list[tuple[float, float, float]]:
    """(damage, seconds, nbytes) of every choice, by brute force."""
    found = []
    for picks in itertools.product(*(range(len(options)) for options in table.rows.values())):
        at = dict(zip(table.rows, picks, strict=True))
        chosen = [table.rows[row][i] for row, i in at.items()]
        seconds = [table.seconds, *(o.seconds for o in chosen)]
        seconds += [p.seconds[at[p.first]][at[p.second]] for p in table.pairs]
        nbytes = [table.nbytes, *(o.nbytes for o in chosen)]
        nbytes += [p.nbytes[at[p.first]][at[p.second]] for p in table.pairs]
        found.append((math.fsum(o.damage for o in chosen), math.fsum(seconds), math.fsum(nbytes)))
    return found


def as_chosen(table: Table, plan: Plan) -> tuple[float, float, float]:
    """What the plan's own choice costs."""
    alone = {row: [o for o in options if o.name == plan.choice[row]][:1] for row, options in table.rows.items()}
    at = {row: [o.name for o in options].index(plan.choice[row]) for row, options in table.rows.items()}
    pairs = [
        Pair(p.first, p.second, ((p.seconds[at[p.first]][at[p.second]],),), ((p.nbytes[at[p.first]][at[p.second]],),))
        for p in table.pairs
    ]
    (only,) = every_plan(Table(alone, pairs, table.seconds, table.nbytes))
    return only


class PlannerLaws:
    """Set `planner` and `exact` (whether the plan is the best one, not only a good one)."""

    planner: ClassVar[Planner]
    exact: ClassVar[bool] = True

    @given(tables(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["both", "seconds", "nbytes", "none"]))
    @settings(max_examples=120, deadline=None)
    def test_against_brute_force(self, table: Table, share: float, other: float, kind: str) -> None:
        plans = every_plan(table)
        budget = Budget(
            seconds=_between([s for _, s, _ in plans], share) if kind in ("both", "seconds") else None,
            nbytes=_between([b for _, _, b in plans], other) if kind in ("both", "nbytes") else None,
        )
        inside = [p for p in plans if _inside(p, budget)]
        if not inside:
            with pytest.raises(BudgetError):
                type(self).planner(table, budget)
            return
        plan = type(self).planner(table, budget)
        best = min(damage for damage, _, _ in inside)
        assert set(plan.choice) == set(table.rows)
        assert as_chosen(table, plan) == pytest.approx((plan.damage, plan.seconds, plan.nbytes))
        assert _inside((plan.damage, plan.seconds, plan.nbytes), budget)
        assert plan.at_best <= best + 1e-9 * abs(best)
        assert plan.at_best <= plan.damage
        if self.exact:
            assert plan.damage <= best + 1e-6 * abs(best) + 1e-9
            assert plan.at_best >= best - 1e-5 * abs(best) - 1e-9

    def test_infeasible_says_by_how_much(self) -> None:
        table = Table({"a": [Option("x", 1, 0.002, 900), Option("y", 2, 0.001, 2000)]}, seconds=0.001)
        with pytest.raises(BudgetError, match=r"smallest reachable time is 2 ms, 100\.0 % more than the 1 ms"):
            type(self).planner(table, Budget(seconds=0.001))
        with pytest.raises(BudgetError, match=r"smallest reachable size is 0\.9 kB, 80\.0 % more than the 0\.5 kB"):
            type(self).planner(table, Budget(nbytes=500))
        with pytest.raises(BudgetError, match=r"each alone can be met; within 2 ms the smallest size is 2 kB"):
            type(self).planner(table, Budget(seconds=0.002, nbytes=1000))

    def test_the_same_plan_twice_and_the_table_left_alone(self) -> None:
        rows = {f"r{i}": [Option(f"o{j}", (i + j) % 3, j, 9 - j) for j in range(4)] for i in range(5)}
        table = Table(rows, [Pair("r0", "r1", ((1.0,) * 4,) * 4, ((0.0,) * 4,) * 4)])
        before = repr(table)
        first = type(self).planner(table, Budget(seconds=12))
        assert type(self).planner(table, Budget(seconds=12)) == first
        assert repr(table) == before


def _between(values: list[float], share: float) -> float:
    return min(values) * 0.9 + share * (max(values) * 1.05 - min(values) * 0.9)


def _inside(plan: tuple[float, float, float], budget: Budget) -> bool:
    _, seconds, nbytes = plan
    return all(
        limit is None or value <= limit * (1 + 1e-9)
        for value, limit in ((seconds, budget.seconds), (nbytes, budget.nbytes))
    )
