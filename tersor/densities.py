"""How sparse each matrix should be: damage-against-density curves, and the least damage at a number of weights.

The same density everywhere is `dict.fromkeys(names, share)`: it needs no function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tersor.errors import BudgetError
from tersor.graph.model import Model
from tersor.maths.damage import damage, quadratic
from tersor.maths.pattern import Anywhere
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts, Profile
from tersor.site import Matrix, matrices
from tersor.technique import Technique
from tersor.techniques.sparse import Sparse

DENSITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STEPS = 200  # densities that are considered, between 0 and 1


@dataclass(frozen=True)
class Curve:
    """`damage[i]`, in nats, of keeping the share `densities[i]` of `size` weights; ascending in density, ends with 1."""

    size: int
    densities: tuple[float, ...]
    damage: tuple[float, ...]

    def at(self, densities: np.ndarray) -> np.ndarray:
        """Damage between the measured points: its square root, about as large as the error, is taken as linear there."""
        return np.interp(densities, self.densities, np.sqrt(self.damage)) ** 2


def pruned(density: float) -> Technique:
    """What a curve is measured with: cheap, and of the same shape as what better techniques reach."""
    return Sparse(Anywhere(density))


def curves(
    model: Model,
    profile: Profile,
    densities: Sequence[float] = DENSITIES,
    technique: Callable[[float], Technique] = pruned,
) -> dict[str, Curve]:
    """For each matrix, the damage that `technique(density)` does at every density, all other matrices being intact."""
    return {
        matrix.name: _curve(model, profile.facts[matrix.name], matrix, densities, technique)
        for matrix in matrices(model)
    }


def allocate(curves: Mapping[str, Curve], share: float, power: float = 1.0) -> dict[str, float]:
    """The density of each matrix, of least summed `damage^power`, at no more than `share` of all weights.

    A Lagrangian: each matrix takes the density that minimises `damage^power + price * weights`, and the price is
    bisected; exact where the curves are convex. A `power` below 1 trusts large predicted damages less.
    Raises `BudgetError` where even the sparsest measured densities are too many.
    """
    sizes = {name: curve.size for name, curve in curves.items()}
    budget = share * sum(sizes.values())
    tables = {name: _table(curve, power) for name, curve in curves.items()}
    least = sum(sizes[name] * table[0][0] for name, table in tables.items())
    if least > budget:
        raise BudgetError(
            f"The lowest measured densities leave {least:.0f} weights; the share {share} is {budget:.0f}. Keep more weights, "
            "or measure the curves at lower densities."
        )

    def chosen(price: float) -> dict[str, float]:
        return {n: float(d[np.argmin(cost + price * sizes[n] * d)]) for n, (d, cost) in tables.items()}

    def spent(found: Mapping[str, float]) -> float:
        return sum(sizes[name] * density for name, density in found.items())

    low, high = 0.0, 1e-12
    while spent(chosen(high)) > budget:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(chosen(middle)) > budget else (low, middle)
    return chosen(high)


def _table(curve: Curve, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Densities that can be chosen, and what each costs."""
    fine = np.arange(1, STEPS + 1) / STEPS
    grid = np.unique([*curve.densities, *fine[fine >= curve.densities[0]]])
    return grid, curve.at(grid) ** power


def _curve(
    model: Model, facts: Facts, matrix: Matrix, densities: Sequence[float], technique: Callable[[float], Technique]
) -> Curve:
    w = model.tensor(matrix.weight)
    old = to_matrix(w, matrix.groups, matrix.transposed).double()
    gram = quadratic(facts.gram, free_bias=matrix.bias is not None).gram

    def lost(density: float) -> float:
        value = technique(density).fit(matrix, w, facts).dense()
        return damage(to_matrix(value, matrix.groups, matrix.transposed).double() - old, gram, facts.fisher)

    measured = sorted(d for d in densities if d < 1)
    return Curve(w.numel(), (*measured, 1.0), (*(max(0.0, lost(d)) for d in measured), 0.0))
