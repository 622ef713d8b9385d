"""Dependency analysis: which positions of which parameters live or die together.

A *family* is a set of variables that touch the same axes of the same parameters equally often: the channels of one layer, the
heads of one attention, the residual width. Its variables are the blocks of one prunable group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tersor.errors import ModelError
from tersor.graph.labels import Axis
from tersor.graph.model import Model
from tersor.graph.rules_elementwise import ELEMENTWISE
from tersor.graph.rules_matrix import MATRIX
from tersor.graph.rules_shape import SHAPE
from tersor.graph.trace import Axes, Trace, Value, trace

RULES = {**ELEMENTWISE, **MATRIX, **SHAPE}


@dataclass(frozen=True)
class Touch:
    """One axis of one tensor, in one role, that a family's blocks occupy at `positions`."""

    tensor: str
    axis: int
    role: str
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Family:
    """Variables that can be removed one by one, as the blocks of a group."""

    name: str
    variables: tuple[int, ...]
    touches: tuple[Touch, ...]
    counted: tuple[str, ...]


@dataclass(frozen=True)
class Dependency:
    """The result of the analysis: families, and the labels of every value in the graph."""

    families: tuple[Family, ...]
    tensors: Mapping[str, Axes]
    walk: Trace

    def dead(self, keep: Mapping[str, Sequence[int]]) -> frozenset[int]:
        """The variables that die when `keep[group name]` are the blocks that stay.

        Raises `ModelError` for unknown groups, blocks out of range, and groups that would keep nothing.
        """
        by_name = {family.name: family for family in self.families}
        gone: set[int] = set()
        for name, blocks in keep.items():
            if name not in by_name:
                raise ModelError(f"The model has no prunable group {name!r}; it has {', '.join(by_name) or 'none'}.")
            variables = by_name[name].variables
            wrong = [b for b in blocks if not 0 <= b < len(variables)]
            if wrong:
                raise ModelError(f"Group {name!r} has blocks 0 to {len(variables) - 1}; block {wrong[0]} was to be kept.")
            if not len(blocks):
                raise ModelError(f"Group {name!r} would keep none of its {len(variables)} blocks; keep at least one.")
            gone |= set(variables) - {variables[b] for b in blocks}
        return frozenset(gone)

    def live(self, axis: Axis, dead: frozenset[int]) -> list[int]:
        """The positions of `axis` that stay."""
        normal = self.walk.labels.normal
        return [i for i, label in enumerate(axis) if not normal(label) & dead]

    def refusal(self, axis: Axis) -> str | None:
        """Why no position of `axis` can be removed, as a sentence; None where some can."""
        prunable = {v for family in self.families for v in family.variables}
        labels = self.walk.labels
        if any(labels.normal(label) & prunable for label in axis):
            return None
        for label in axis:
            why = labels.reason(label)
            if why is not None:
                return f"not prunable: {why}"
        return "not prunable: its positions can only be removed all at once"


def analyse(model: Model) -> Dependency:
    """Find everything that can be removed from `model`, and label every value of its graph."""
    walk = trace(model, RULES)
    tensors = {
        str(node.target): walk.axes(node)
        for node in model.graph.nodes
        if node.op == "get_attr" and walk.values.get(node) is not None
    }
    variables = _variables(walk, tensors)
    touched = _touched(walk, tensors, variables)
    families = [_family(walk, tensors, members) for members in _same_touch(touched, variables)]
    families = [f for f in families if any(t.role != "carries" for t in f.touches)]
    order = {tensor: i for i, (tensor, _, _) in enumerate(walk.roles)}
    families.sort(key=lambda f: (order.get(f.touches[0].tensor, len(order)), f.touches[0].positions[0]))
    return Dependency(tuple(_named(families)), tensors, walk)


def _variables(walk: Trace, tensors: Mapping[str, Axes]) -> list[int]:
    found = {v for axes in tensors.values() for axis in axes for label in axis for v in walk.labels.normal(label)}
    return sorted(found)


def _touched(walk: Trace, tensors: Mapping[str, Axes], variables: Sequence[int]) -> dict[int, tuple]:
    """Per variable, how often it occurs on each distinct axis: of parameters, and of values on the way."""
    counts: dict[int, list[tuple[int, int]]] = {v: [] for v in variables}
    for number, axis in enumerate(_distinct_axes(walk, tensors)):
        occurrences = Counter(v for label in axis for v in walk.labels.normal(label))
        for variable, count in occurrences.items():
            if variable in counts:
                counts[variable].append((number, count))
    return {v: tuple(found) for v, found in counts.items()}


def _distinct_axes(walk: Trace, tensors: Mapping[str, Axes]) -> list[Axis]:
    """Axes that share no object: a part of an axis that is cut off must not lose all of its blocks unnoticed."""
    axes = {id(axis): axis for axes in tensors.values() for axis in axes}
    for value in walk.values.values():
        for each in flat_axes(value):
            axes.setdefault(id(each), each)
    distinct = {axis: axis for axis in axes.values()}
    return list(distinct.values())


def flat_axes(value: Value) -> list[Axis]:
    """All axes of a value, which may be a tuple of tensors."""
    if value is None or not value:
        return []
    if value[0] is None or (value[0] and isinstance(value[0][0], tuple)):
        return [axis for axes in value for axis in axes or ()]  # type: ignore[misc]
    return [axis for axis in value if isinstance(axis, tuple)]  # type: ignore[misc]


def _same_touch(touched: Mapping[int, tuple], variables: Sequence[int]) -> list[list[int]]:
    by_touch: dict[tuple, list[int]] = {}
    for variable in variables:
        by_touch.setdefault(touched[variable], []).append(variable)
    return [members for members in by_touch.values() if len(members) > 1]


def _family(walk: Trace, tensors: Mapping[str, Axes], members: list[int]) -> Family:
    touches = _touches(walk, tensors, members)
    first = touches[0].positions
    order = sorted(range(len(members)), key=lambda b: first[b])
    ordered = tuple(
        Touch(t.tensor, t.axis, t.role, tuple(t.positions[b] for b in order))
        for t in touches
    )
    wanted = frozenset(members)
    counted = {name for axis, name in walk.counted if any(walk.labels.normal(label) & wanted for label in axis)}
    return Family(_producer(ordered), tuple(members[b] for b in order), ordered, tuple(sorted(counted)))


def _touches(walk: Trace, tensors: Mapping[str, Axes], members: list[int]) -> list[Touch]:
    noted = [(name, axis, role) for name, axis, role in walk.roles]
    known = {(name, axis) for name, axis, _ in noted}
    others = [(n, d, "carries") for n, axes in tensors.items() for d in range(len(axes)) if (n, d) not in known]
    found = []
    for name, d, role in sorted(noted, key=lambda n: n[2] != "produces") + others:
        positions = _positions(walk, tensors[name][d], members)
        if any(positions):
            found.append(Touch(name, d, role, positions))
    return found


def _positions(walk: Trace, axis: Axis, members: list[int]) -> tuple[tuple[int, ...], ...]:
    where: dict[int, list[int]] = {v: [] for v in members}
    for i, label in enumerate(axis):
        for variable in walk.labels.normal(label):
            if variable in where:
                where[variable].append(i)
    return tuple(tuple(where[v]) for v in members)


def _producer(touches: Sequence[Touch]) -> str:
    return touches[0].tensor.removesuffix(".weight")


def _named(families: Sequence[Family]) -> list[Family]:
    """Families of the same producer get a number from the second on."""
    seen: Counter[str] = Counter()
    out = []
    for family in families:
        seen[family.name] += 1
        times = seen[family.name]
        name = family.name if times == 1 else f"{family.name}#{times}"
        out.append(Family(name, family.variables, family.touches, family.counted))
    return out

