"""The multiple-choice knapsack with pair costs, solved exactly by HiGHS.

    minimise    sum_r sum_o damage[r, o] x[r, o]
    subject to  sum_o x[r, o] = 1                                one option a row, x in {0, 1}
                sum_j y[p, i, j] = x[first(p), i]                y is the product of two choices:
                sum_i y[p, i, j] = x[second(p), j]               transport constraints, tight for integer x
                fixed + cost . x + sum_p pair cost . y <= limit  for seconds and for nbytes

Cost: 60 rows of 20 options in some tenths of a second. Fails with a note, not silently, where the time ends before the
proof. Source: the linear form of the products is that of Sherali and Adams (1990).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

from tersor import deadline
from tersor.errors import BudgetError
from tersor.plan import Budget, Option, Pair, Plan, Table

_ROUNDING = 1e-9  # relative, of sums of measured numbers
_TRIES = 50  # plans that HiGHS' tolerance of 1e-6 let through and that exact arithmetic refuses


def knapsack(table: Table, budget: Budget, time_limit: float = 60.0) -> Plan:
    """The plan of least damage inside `budget`, and a proved lower bound of that damage.

    Options of infinite damage are never chosen, nor is one that another beats in every respect. After `time_limit`
    seconds the best plan so far is returned with a note. Raises `BudgetError` that says the smallest reachable seconds
    and bytes, `ValueError` for a table with NaN.
    """
    program = _Program.of(_reduced(table), time_limit)
    limits = {"seconds": budget.seconds, "nbytes": budget.nbytes}
    asked = {kind: limit for kind, limit in limits.items() if limit is not None}
    rough = program.minimise("damage", asked, gap=0.01)
    if rough is None:
        raise BudgetError(_by_how_much(program, asked))
    best = program.without_worse_than(rough.value).minimise("damage", asked) or rough
    if best.value > rough.value:
        best = rough
    damage, seconds, nbytes = cost(table, best.choice)
    bound = max(best.bound, rough.bound, program.least)
    proved = bound >= damage - 1e-6 * abs(damage)
    notes = {} if proved else {"planner": f"stopped after {time_limit:g} s, before the plan was proved to be the best"}
    return Plan(best.choice, damage, seconds, nbytes, min(damage, bound), notes)


def cost(table: Table, choice: Mapping[str, str]) -> tuple[float, float, float]:
    """(damage, seconds, nbytes) of one option name a row, with everything that the table holds besides."""
    at = {row: [o.name for o in options].index(choice[row]) for row, options in table.rows.items()}
    chosen = [options[at[row]] for row, options in table.rows.items()]
    pairs = [(p, at[p.first], at[p.second]) for p in table.pairs]
    return (
        math.fsum(o.damage for o in chosen),
        math.fsum([table.seconds, *(o.seconds for o in chosen), *(p.seconds[i][j] for p, i, j in pairs)]),
        math.fsum([table.nbytes, *(o.nbytes for o in chosen), *(p.nbytes[i][j] for p, i, j in pairs)]),
    )


@dataclass(frozen=True)
class _Solved:
    choice: Mapping[str, str]
    value: float
    bound: float


@dataclass(frozen=True)
class _Program:
    """The table as vectors: one variable for each option, row by row, then one for each pair of options."""

    table: Table
    costs: Mapping[str, np.ndarray]
    fixed: Mapping[str, float]
    equalities: csr_array
    right: np.ndarray
    upper: np.ndarray
    unit: float  # of damage: HiGHS stops at an absolute gap of 1e-6
    time_limit: float

    @staticmethod
    def of(table: Table, time_limit: float) -> _Program:
        options = [o for row in table.rows.values() for o in row]
        pairs = [np.size(p.seconds) for p in table.pairs]
        costs = {"damage": np.array([*(o.damage for o in options), *[0.0] * sum(pairs)])}
        costs["seconds"] = np.concatenate([[o.seconds for o in options], *(np.ravel(p.seconds) for p in table.pairs)])
        costs["nbytes"] = np.concatenate([[o.nbytes for o in options], *(np.ravel(p.nbytes) for p in table.pairs)])
        equalities, right = _equalities(table, len(costs["damage"]))
        unit = float(np.abs(costs["damage"]).sum()) or 1.0
        fixed = {"damage": 0.0, "seconds": table.seconds, "nbytes": table.nbytes}
        return _Program(table, costs, fixed, equalities, right, np.ones(len(costs["damage"])), unit, time_limit)

    @property
    def least(self) -> float:
        """The damage of every row's best option: a bound that needs no solver."""
        return math.fsum(min(o.damage for o in options) for options in self.table.rows.values())

    def without_worse_than(self, value: float) -> _Program:
        """The same program, to be solved more finely, without options that alone cost more damage than a known plan."""
        spare = value - self.least + _ROUNDING * abs(value)
        out = [o.damage - min(x.damage for x in row) > spare for row in self.table.rows.values() for o in row]
        upper = self.upper.copy()
        upper[: len(out)][np.array(out, bool)] = 0.0
        return replace(self, upper=upper, unit=abs(value) / 1e3 or 1.0)

    def minimise(self, goal: str, limits: Mapping[str, float], gap: float = 0.0) -> _Solved | None:
        """The best choice inside the limits, None where there is none."""
        if not self.table.rows:
            inside = all(self.fixed[kind] <= limit for kind, limit in limits.items())
            return _Solved({}, self.fixed[goal], self.fixed[goal]) if inside else None
        cuts: list[np.ndarray] = []
        while len(cuts) < _TRIES:
            result, bound = self._solve(goal, limits, cuts, gap)
            if result.x is None:
                return None
            x = np.round(result.x)
            values = {kind: math.fsum(self.costs[kind][x > 0]) + self.fixed[kind] for kind in self.costs}
            if all(values[kind] <= limit + _ROUNDING * abs(limit) for kind, limit in limits.items()):
                return _Solved(self._choice(x), values[goal], min(values[goal], bound))
            cuts.append(x)
        return None

    def _choice(self, x: np.ndarray) -> dict[str, str]:
        flags = iter(x)
        named = {row: [(o.name, next(flags)) for o in options] for row, options in self.table.rows.items()}
        return {row: next(name for name, flag in options if flag) for row, options in named.items()}

    def _solve(
        self, goal: str, limits: Mapping[str, float], cuts: list[np.ndarray], gap: float
    ) -> tuple[OptimizeResult, float]:
        integers = sum(len(options) for options in self.table.rows.values())
        unit = self.unit if goal == "damage" else float(np.abs(self.costs[goal]).max()) / 1e3 or 1.0
        constraints = [LinearConstraint(self.equalities, self.right, self.right)]
        for kind, limit in limits.items():
            room = limit - self.fixed[kind]
            one = abs(room) or float(np.abs(self.costs[kind]).max()) or 1.0
            constraints.append(LinearConstraint(self.costs[kind][None, :] / one, -np.inf, room / one + _ROUNDING))
        for x in cuts:
            once = np.where(np.arange(len(x)) < integers, x, 0.0)
            constraints.append(LinearConstraint(once[None, :], -np.inf, len(self.table.rows) - 1))
        result = milp(
            self.costs[goal] / unit,
            integrality=(np.arange(len(self.upper)) < integers).astype(int),
            bounds=Bounds(np.zeros(len(self.upper)), self.upper),
            constraints=constraints,
            options={"mip_rel_gap": gap, "time_limit": max(1.0, min(self.time_limit, deadline.left()))},
        )
        if result.x is None and result.status != 2:
            deadline.check()
            raise BudgetError(
                f"No plan was found in {self.time_limit:g} s ({result.message}); allow more, or fewer options."
            )
        bound = -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound) * unit
        return result, bound - _ROUNDING * abs(bound) + self.fixed[goal]


def _equalities(table: Table, variables: int) -> tuple[csr_array, np.ndarray]:
    offset: dict[str, int] = {}
    entries: list[tuple[int, int, float]] = []  # (constraint, variable, value)
    right: list[float] = []
    start = 0
    for row, options in table.rows.items():
        offset[row] = start
        entries += [(len(right), start + i, 1.0) for i in range(len(options))]
        right.append(1.0)
        start += len(options)
    for pair in table.pairs:
        n, m = len(table.rows[pair.first]), len(table.rows[pair.second])
        for i in range(n):
            entries += [(len(right) + i, start + i * m + j, 1.0) for j in range(m)]
            entries.append((len(right) + i, offset[pair.first] + i, -1.0))
        for j in range(m):
            entries += [(len(right) + n + j, start + i * m + j, 1.0) for i in range(n)]
            entries.append((len(right) + n + j, offset[pair.second] + j, -1.0))
        right += [0.0] * (n + m)
        start += n * m
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    return csr_array((values, (rows, columns)), shape=(len(right), variables)), np.array(right)


def _reduced(table: Table) -> Table:
    """The table without options that are in no best plan, or in none before an equal one."""
    kept = {row: _useful(table, row) for row in table.rows}
    for row, indices in kept.items():
        if not indices:
            raise BudgetError(f"No option of '{row}' has a finite damage; allow more options there.")
    rows = {row: [table.rows[row][i] for i in indices] for row, indices in kept.items()}
    pairs = [
        Pair(p.first, p.second, *(_part(values, kept[p.first], kept[p.second]) for values in (p.seconds, p.nbytes)))
        for p in table.pairs
    ]
    return Table(rows, pairs, table.seconds, table.nbytes)


def _useful(table: Table, row: str) -> list[int]:
    features = [_numbers(o) for o in table.rows[row]]
    for pair in table.pairs:
        for values in (np.array(pair.seconds), np.array(pair.nbytes)):
            if row in (pair.first, pair.second):
                aligned = values if row == pair.first else values.T
                features = [[*f, *map(float, a)] for f, a in zip(features, aligned, strict=True)]
    matrix = np.array(features).reshape(len(features), -1)
    if np.isnan(matrix).any():
        raise ValueError(f"an option of row '{row}' holds NaN")
    kept: list[int] = []
    for i in np.lexsort(matrix.T[::-1]):  # by damage first: what beats an option stands before it
        if np.isfinite(matrix[i, 0]) and not (matrix[kept] <= matrix[i]).all(1).any():
            kept.append(int(i))
    return sorted(kept)


def _numbers(option: Option) -> list[float]:
    return [option.damage, option.seconds, option.nbytes]


def _part(values: Sequence[Sequence[float]], first: list[int], second: list[int]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values[i][j] for j in second) for i in first)


def _by_how_much(program: _Program, asked: Mapping[str, float]) -> str:
    shown = {"seconds": _milliseconds, "nbytes": _kilobytes}
    for kind, limit in asked.items():
        alone = program.minimise(kind, {})
        if alone is not None and alone.value > limit:
            over = f", {100 * (alone.value / limit - 1):.1f} % more" if limit > 0 else ""
            return (
                f"No plan is within the budget: the smallest reachable {_WORDS[kind]} is {shown[kind](alone.value)}{over} than "
                f"the {shown[kind](limit)} requested; allow more, or add options."
            )
    together = program.minimise("nbytes", {"seconds": asked["seconds"]}) if len(asked) == 2 else None
    least = (
        f"; within {_milliseconds(asked['seconds'])} the smallest size is {_kilobytes(together.value)}"
        if together
        else ""
    )
    limits = " and ".join(f"{shown[kind](limit)}" for kind, limit in asked.items())
    return f"No plan is within the budget of {limits} together, though each alone can be met{least}; allow more of one."


_WORDS = {"seconds": "time", "nbytes": "size"}


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.4g} ms"


def _kilobytes(value: float) -> str:
    return f"{value / 1e3:.4g} kB"
