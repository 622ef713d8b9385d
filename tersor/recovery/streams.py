"""Which residual sums of a student are like which of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tersor.graph.branches import Branch, branches
from tersor.graph.model import Model
from tersor.recovery.network import Network, Teacher
from tersor.recovery.stream import Stream
from tersor.rewrites.fold_norms import fold_norms

Sum = tuple[Branch, tuple[int, ...]]
"""A residual sum and its shape."""


@torch.no_grad()
def alike(student: Network, teacher: Teacher, stream: Stream) -> tuple[tuple[str, str], ...]:
    """(student's, teacher's) node names of the residual sums to compare, in execution order; those of one pair have one shape.

    What is left of a teacher is compared where it was there. Of another network the sums of each shape stand at equal shares
    of the way, and the last ones are a pair: a stage of three blocks has all of a stage of nine in view.
    """
    batch = stream.batch(0)[0].pick(slice(0, 2))
    found: list[list[Sum]] = []
    for network, model in ((student, student.whole()), (teacher, teacher.whole())):
        sums = _sums(model)
        names = [each.addition for each in sums]
        seen = network(batch.inputs, names, False) if isinstance(network, Network) else network(batch.inputs, names)
        found.append([(each, tuple(seen.inner[each.addition].shape)) for each in sums])
    ours, theirs = found
    pairs = _left(ours, theirs) if _derived(ours, theirs) else _spread(ours, theirs)
    return tuple((a.addition, b.addition) for a, b in pairs)


def _sums(model: Model) -> Sequence[Branch]:
    return branches(fold_norms(model))  # which ends branches in matrices


def _derived(ours: Sequence[Sum], theirs: Sequence[Sum]) -> bool:
    """Whether ours are theirs, or some of them with the last."""
    known = [(branch.name, branch.addition) for branch, _ in theirs]
    mine = [(branch.name, branch.addition) for branch, _ in ours]
    return mine[-1:] == known[-1:] and set(mine) <= set(known)


def _left(ours: Sequence[Sum], theirs: Sequence[Sum]) -> list[tuple[Branch, Branch]]:
    known = {branch.addition: (branch, shape) for branch, shape in theirs}
    return [(a, known[a.addition][0]) for a, shape in ours if known[a.addition][1] == shape]


def _spread(ours: Sequence[Sum], theirs: Sequence[Sum]) -> list[tuple[Branch, Branch]]:
    pairs = []
    for shape in dict.fromkeys(shape for _, shape in ours):
        mine, other = ([branch for branch, its in sums if its == shape] for sums in (ours, theirs))
        few = min(len(mine), len(other))
        pairs += [(mine[_place(k, few, len(mine))], other[_place(k, few, len(other))]) for k in range(1, few + 1)]
    return pairs


def _place(k: int, of: int, among: int) -> int:
    """The index, among so many, of the k-th of `of` at equal distances; the last is the last."""
    return round(k * among / of) - 1
