"""How wide each group should be: damage-against-width curves, and the least damage at a number of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch

from tersor.errors import BudgetError
from tersor.graph.macs import macs
from tersor.graph.model import Model
from tersor.maths.obs import Reader, Sweep, damped, sweep
from tersor.maths.unfold import to_matrix
from tersor.profile import Profile
from tersor.site import Group, Matrix, matrices

DAMPING = 1e-2


def curves(model: Model, profile: Profile, groups: Sequence[Group], damping: float = DAMPING) -> dict[str, Sweep]:
    """For each group, the order in which blocks go and the damage of every width, by one structured OBS sweep.

    `sweep.damage[k]` is the damage, in nats, of having removed `k` blocks with the readers repaired. Readers are the
    ungrouped matrices whose columns the group owns; a group without one is not in the answer.
    """
    by_weight = {m.weight: m for m in matrices(model)}
    found = {}
    for group in groups:
        readers = [
            _reader(model, profile, by_weight[m.tensor], m.positions, damping)
            for m in group.members
            if m.role == "reads" and m.tensor in by_weight and by_weight[m.tensor].groups == 1
        ]
        if readers:
            found[group.name] = sweep(readers)
    return found


def allocate(
    model: Model,
    swept: Mapping[str, Sweep],
    groups: Sequence[Group],
    budget: float,
    least: int = 1,
    power: float = 1.0,
) -> dict[str, tuple[int, ...]]:
    """The blocks to keep, by group, of least summed damage at no more than `budget` multiply-accumulates an item.

    A Lagrangian: each group takes the width that minimises `damage^power + price * macs`, with the other groups at
    their present widths, and the price is bisected. A `power` below 1 trusts large predicted damages less.
    Raises `BudgetError` when even `least` blocks a group are too many.
    """
    counter = _Counter(model, [g for g in groups if g.name in swept])
    narrowest = dict.fromkeys(counter.groups, least)
    if counter.total(narrowest) > budget:
        raise BudgetError(
            f"Even {least} block(s) a group leave {counter.total(narrowest):.4g} multiply-accumulates; the budget is "
            f"{budget:.4g}. Ask for at least that, or allow more groups."
        )
    low, high = 0.0, 1.0
    while counter.total(_widths(counter, swept, high, least, power)) > budget:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        if counter.total(_widths(counter, swept, middle, least, power)) > budget:
            low = middle
        else:
            high = middle
    chosen = _widths(counter, swept, high, least, power)
    return {name: swept[name].kept(width) for name, width in chosen.items()}


def _widths(
    counter: _Counter, swept: Mapping[str, Sweep], price: float, least: int, power: float, rounds: int = 4
) -> dict[str, int]:
    widths = {name: group.blocks for name, group in counter.groups.items()}
    for _ in range(rounds):
        before = dict(widths)
        for name in widths:
            slope = price * counter.per_block(name, widths)
            damage = swept[name].damage
            costs = [damage[len(damage) - 1 - k] ** power + slope * k for k in range(least, len(damage))]
            widths[name] = least + costs.index(min(costs))
        if widths == before:
            break
    return widths


class _Counter:
    """Multiply-accumulates as a function of the widths: each matrix scales with every group that cuts it."""

    def __init__(self, model: Model, groups: Sequence[Group]):
        self.groups = {g.name: g for g in groups}
        self._macs = macs(model)
        by_weight = {m.weight: m.name for m in matrices(model)}
        self._touching: dict[str, list[tuple[str, float]]] = {name: [] for name in self._macs}
        for group in groups:
            for member in group.members:
                if member.tensor in by_weight:
                    axis = model.tensor(member.tensor).shape[member.axis]
                    share = sum(len(p) for p in member.positions) / axis
                    self._touching[by_weight[member.tensor]].append((group.name, share))

    def total(self, widths: Mapping[str, int]) -> float:
        return sum(self._of(matrix, widths) for matrix in self._macs)

    def per_block(self, group: str, widths: Mapping[str, int]) -> float:
        """What one block of `group` costs with the other groups as they are."""
        mine = [matrix for matrix, touching in self._touching.items() if any(name == group for name, _ in touching)]
        all_but = [{**widths, group: width} for width in (0, self.groups[group].blocks)]
        none, every = (sum(self._of(matrix, w) for matrix in mine) for w in all_but)
        return (every - none) / self.groups[group].blocks

    def _of(self, matrix: str, widths: Mapping[str, int]) -> float:
        cost = float(self._macs[matrix])
        for name, share in self._touching[matrix]:
            cost *= 1 - share * (1 - widths[name] / self.groups[name].blocks)
        return cost


def _reader(
    model: Model, profile: Profile, matrix: Matrix, positions: Sequence[Sequence[int]], damping: float
) -> Reader:
    facts = profile.facts[matrix.name]
    transposed = matrix.convolution is not None and matrix.convolution.transposed
    w = to_matrix(model.tensor(matrix.weight), 1, transposed)[0].double()
    gram = damped(facts.gram, damping)[0]
    if matrix.bias is None:
        gram = gram[:-1, :-1]
    else:
        w = torch.cat([w, w.new_zeros(len(w), 1)], 1)
    return Reader(w, gram, facts.fisher, _columns(matrix, positions))


def _columns(matrix: Matrix, positions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Columns of the unfolded matrix for positions along the input axis."""
    size = 1 if matrix.convolution is None else prod(matrix.convolution.kernel)
    return [[p * size + k for p in block for k in range(size)] for block in positions]
