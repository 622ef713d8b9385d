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
from tersor.graph.trace import Axes, Trace, flat_axes, trace
from tersor.graph.zeros import unclean_sums

Places = Mapping[tuple[str, int], Mapping[int, list[int]]]
"""By tensor name and axis, the positions that each variable governs."""
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
                raise ModelError(
                    f"Group {name!r} has blocks 0 to {len(variables) - 1}; block {wrong[0]} was to be kept."
                )
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
    walk.counted.extend(unclean_sums(model.graph.nodes, walk))
    tensors = {
        str(node.target): walk.axes(node)
        for node in model.graph.nodes
        if node.op == "get_attr" and walk.values.get(node) is not None
    }
    places = {(name, d): _places(walk, axis) for name, axes in tensors.items() for d, axis in enumerate(axes)}
    families = [_family(walk, places, members) for members in _same_touch(walk, places)]
    families = [f for f in families if any(t.role != "carries" for t in f.touches)]
    order = {name: i for i, (name, _, _) in enumerate(walk.roles)}
    families.sort(key=lambda f: (order.get(f.touches[0].tensor, len(order)), f.touches[0].positions[0]))
    return Dependency(tuple(_named(families)), tensors, walk)


def _places(walk: Trace, axis: Axis) -> dict[int, list[int]]:
    """The positions of `axis` that each variable governs."""
    where: dict[int, list[int]] = {}
    for i, label in enumerate(axis):
        for variable in walk.labels.normal(label):
            where.setdefault(variable, []).append(i)
    return where


def _same_touch(walk: Trace, places: Places) -> list[list[int]]:
    """Variables that occur equally often on each distinct axis: of parameters, and of values on the way.

    The values on the way matter: a part that is cut off an axis must not lose all of its blocks unnoticed.
    """
    touched: dict[int, list[tuple[int, int]]] = {v: [] for where in places.values() for v in where}
    on_the_way = {id(axis): axis for value in walk.values.values() for axis in flat_axes(value)}
    occurrences = [{v: len(at) for v, at in where.items()} for where in places.values()]
    occurrences += [
        Counter(v for label in axis for v in walk.labels.normal(label)) for axis in set(on_the_way.values())
    ]
    for number, counts in enumerate(occurrences):
        for variable, count in counts.items():
            if variable in touched:
                touched[variable].append((number, count))
    by_touch: dict[tuple, list[int]] = {}
    for variable in sorted(touched):
        by_touch.setdefault(tuple(touched[variable]), []).append(variable)
    return [members for members in by_touch.values() if len(members) > 1]


def _family(walk: Trace, places: Places, members: list[int]) -> Family:
    touches = _touches(walk, places, members)
    order = sorted(range(len(members)), key=lambda b: touches[0].positions[b])
    ordered = tuple(Touch(t.tensor, t.axis, t.role, tuple(t.positions[b] for b in order)) for t in touches)
    wanted = frozenset(members)
    counted = {name for axis, name in walk.counted if any(walk.labels.normal(label) & wanted for label in axis)}
    return Family(_producer(ordered), tuple(members[b] for b in order), ordered, tuple(sorted(counted)))


def _touches(walk: Trace, places: Places, members: list[int]) -> list[Touch]:
    """Producers first, then in execution order."""
    noted = sorted(walk.roles, key=lambda n: n[2] != "produces")
    known = {(name, axis) for name, axis, _ in noted}
    others = [(name, axis, "carries") for name, axis in places if (name, axis) not in known]
    return [
        Touch(name, axis, role, tuple(tuple(places[name, axis].get(v, ())) for v in members))
        for name, axis, role in noted + others
        if not places[name, axis].keys().isdisjoint(members)
    ]


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
