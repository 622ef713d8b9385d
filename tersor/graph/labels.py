"""Labels: which things must be alive for one position of one axis to be alive.

A *variable* is one thing that lives or dies: a channel, a head, a position inside every head. The *label* of a position is
a conjunction (a frozenset) of variables; the empty label is TRUE and never dies. An *axis* is a tuple of labels, one per
position, and a tensor is a tuple of axes.

Variables are merged by union-find. A variable may also be *defined* as a conjunction of others: when 64 channels are viewed
as 4 heads of 16, channel i becomes "head i // 16 and position i % 16", wherever it already occurs. A frozen variable is
defined as TRUE. Whenever two conjunctions cannot be told apart exactly their variables are fused or frozen, which is always
right and only coarser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

Label = frozenset[int]
Axis = tuple[Label, ...]

TRUE: Label = frozenset()


@dataclass(frozen=True)
class Why:
    """What forbids a removal: `operator` at graph node `node`, and what it needs."""

    operator: str
    node: str
    because: str

    def __str__(self) -> str:
        return f"{self.operator} at node {self.node} {self.because}" if self.operator else f"{self.node} {self.because}"


@dataclass
class Labels:
    """All variables of one analysis and what is known about them."""

    parent: list[int] = field(default_factory=list)
    defined: dict[int, Label] = field(default_factory=dict)
    reasons: dict[int, Why] = field(default_factory=dict)
    _normal: dict[Label, Label] = field(default_factory=dict)

    def fresh(self, count: int) -> Axis:
        """An axis of `count` new variables."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return tuple(frozenset((v,)) for v in range(start, start + count))

    def still(self, count: int, why: Why) -> Axis:
        """An axis of `count` positions that can never be removed, and why."""
        label = self.fresh(1)[0]
        self._freeze(label, why)
        return (label,) * count

    def find(self, variable: int) -> int:
        """The representative of `variable`."""
        root = variable
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[variable] != root:
            self.parent[variable], variable = root, self.parent[variable]
        return root

    def normal(self, label: Label) -> Label:
        """The undefined representatives whose conjunction `label` is."""
        known = self._normal.get(label)
        if known is None:
            known = self._normal[label] = self._expand(label)
        return known

    def _expand(self, label: Label) -> Label:
        if len(label) == 1:
            (root,) = map(self.find, label)
            if root not in self.defined:
                return frozenset((root,))
        roots: set[int] = set()
        seen: set[int] = set()  # definitions share parts, and there are many more ways through them than parts
        todo = list(label)
        while todo:
            root = self.find(todo.pop())
            if root in seen:
                continue
            seen.add(root)
            if root in self.defined:
                todo.extend(self.defined[root])
            else:
                roots.add(root)
        return frozenset(roots)

    def frozen(self, axis: Axis) -> bool:
        """Whether no position of `axis` can be removed."""
        return not any(self.normal(label) for label in axis)

    def reason(self, label: Label) -> Why | None:
        """Why a label is TRUE, where a reason is known."""
        todo, seen = list(label), set(label)
        while todo:
            root = self.find(todo.pop(0))
            if root in self.reasons:
                return self.reasons[root]
            more = self.defined.get(root, TRUE) - seen
            seen |= more
            todo.extend(more)
        return None

    def freeze(self, axis: Iterable[Label], why: Why) -> None:
        """Let no position of `axis` ever be removed."""
        for label in axis:
            self._freeze(label, why)

    def unify(self, a: Axis, b: Axis, why: Why) -> None:
        """Let position i of `a` live exactly when position i of `b` does."""
        if a is b:
            return
        if len(a) != len(b):
            raise ValueError(f"axes of {len(a)} and {len(b)} positions cannot be the same")
        hard = [(x, y) for x, y in zip(a, b, strict=True) if x is not y and not self._match(x, y, why)]
        if hard:
            self._pair(hard)
            for x, y in hard:
                if not self._match(x, y, why):
                    self._fuse(self.normal(x) ^ self.normal(y))

    def merge(self, axes: Sequence[Axis]) -> Axis:
        """One axis for several, first slowest: a position lives when all its coordinates do."""
        if len(axes) == 1:
            return axes[0]
        return tuple(self._conjunction(labels) for labels in product(*axes))

    def split(self, flat: Axis, shape: Sequence[int], why: Why) -> list[Axis]:
        """Axes of the sizes `shape` whose merge is `flat`.

        What whole rows or whole columns share is theirs; new variables are invented only for what is left.
        """
        if len(shape) == 1:
            return [flat]
        if not shape:
            self.freeze(flat, why)
            return []
        first, rest = self._factor(flat, shape[0], why)
        return [first, *self.split(rest, shape[1:], why)]

    # ------------------------------------------------------------------------------------------------------- inside

    def _conjunction(self, labels: tuple[Label, ...]) -> Label:
        known = [n for n in map(self.normal, labels) if n]
        if not known:
            return next((label for label in labels if label), TRUE)
        return known[0] if len(known) == 1 else frozenset().union(*known)

    def _factor(self, flat: Axis, rows: int, why: Why) -> tuple[Axis, Axis]:
        columns = len(flat) // rows if rows else 0
        labels = [self.normal(label) for label in flat]
        if not any(labels):
            return flat[::columns] if columns else (TRUE,) * rows, flat[:columns]
        grid = [labels[i * columns : (i + 1) * columns] for i in range(rows)]
        across = [frozenset.intersection(*row) for row in grid]
        down = [frozenset.intersection(*column) for column in zip(*grid, strict=True)]
        shared = frozenset.intersection(*across)
        across = [label - shared for label in across]
        left = [[grid[i][j] - across[i] - down[j] for j in range(columns)] for i in range(rows)]
        for i in range(rows):
            if any(left[i]):
                across[i] |= self.fresh(1)[0]
        for j in range(columns):
            if any(row[j] for row in left):
                down[j] |= self.fresh(1)[0]
        first, rest = tuple(across), tuple(down)
        if any(any(row) for row in left):
            self.unify(flat, self.merge([first, rest]), why)
        return first, rest

    def _match(self, a: Label, b: Label, why: Why) -> bool:
        """Make two labels equal if that takes no guess about which factor belongs to which."""
        if len(a) == len(b) == 1:  # by far the most frequent case, so without the detour over normal forms
            u, v = self.find(next(iter(a))), self.find(next(iter(b)))
            if u not in self.defined and v not in self.defined:
                self._union(u, v)
                return True
        x, y = self.normal(a), self.normal(b)
        if x == y:
            return True
        x, y = x - y, y - x
        if not x or not y:
            stays = b if x else a
            known = None if self.normal(stays) else self.reason(stays)
            self._freeze(x or y, known or why)
            return True
        if len(x) == 1 and len(y) == 1:
            self._union(min(x), min(y))
        elif len(x) == 1:
            self._define(min(x), y)
        elif len(y) == 1:
            self._define(min(y), x)
        else:
            return False
        return True

    def _pair(self, hard: Sequence[tuple[Label, Label]]) -> None:
        """Unite the factors that occur at exactly the same positions on both sides."""
        mine: dict[int, list[int]] = {}
        theirs: dict[int, list[int]] = {}
        for at, (a, b) in enumerate(hard):
            x, y = self.normal(a), self.normal(b)
            for variable in x - y:
                mine.setdefault(variable, []).append(at)
            for variable in y - x:
                theirs.setdefault(variable, []).append(at)
        by_pattern: dict[tuple[int, ...], list[int]] = {}
        for variable, pattern in sorted(theirs.items()):
            by_pattern.setdefault(tuple(pattern), []).append(variable)
        for variable, pattern in sorted(mine.items()):
            partners = by_pattern.get(tuple(pattern), [])
            if partners:
                self._union(variable, partners.pop(0))

    def _union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b and a not in self.defined and b not in self.defined:
            self._normal.clear()
            self.parent[max(a, b)] = min(a, b)

    def _define(self, variable: int, label: Label) -> None:
        self._normal.clear()
        self.defined[variable] = label

    def _fuse(self, variables: Iterable[int]) -> None:
        first, *others = sorted(variables) or [-1]
        for other in others:
            self._union(first, other)

    def _freeze(self, label: Label, why: Why) -> None:
        for variable in self.normal(label):
            self.reasons.setdefault(variable, why)
            self._define(variable, TRUE)
