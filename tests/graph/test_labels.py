"""Labels against brute force: every world of living and dead variables is tried."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.graph.labels import TRUE, Axis, Labels, Why

WHY = Why("aten.topk.default", "topk", "has no rule")


def _lives(labels: Labels, axis: Axis, dead: frozenset[int]) -> list[bool]:
    return [not labels.normal(label) & dead for label in axis]


def _worlds(labels: Labels, *axes: Axis) -> list[frozenset[int]]:
    free = sorted({v for axis in axes for label in axis for v in labels.normal(label)})
    return [
        frozenset(v for v, gone in zip(free, world, strict=True) if gone) for world in product([0, 1], repeat=len(free))
    ]


def test_united_positions_live_together() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unify(a, b, WHY)
    assert all(_lives(labels, a, dead) == _lives(labels, b, dead) for dead in _worlds(labels, a, b))
    assert len(_worlds(labels, a)) == 8


def test_a_split_axis_lives_where_all_its_coordinates_do() -> None:
    labels = Labels()
    flat = labels.fresh(12)
    axes = labels.split(flat, (3, 4), WHY)
    for dead in _worlds(labels, flat, *axes):
        rows, columns = (_lives(labels, axis, dead) for axis in axes)
        assert _lives(labels, flat, dead) == [r and c for r in rows for c in columns]
    assert len(_worlds(labels, flat)) == 2**7  # seven things can die: three rows, four columns


def test_split_undoes_merge_without_inventing_anything() -> None:
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    before = len(labels.parent)
    assert [[labels.normal(x) for x in axis] for axis in labels.split(labels.merge([rows, columns]), (2, 3), WHY)] == [
        list(rows),
        list(columns),
    ]
    assert len(labels.parent) == before


def test_split_keeps_repeats_apart() -> None:
    labels = Labels()
    heads = labels.fresh(2)
    repeated = tuple(label for label in heads for _ in range(3))
    first, second = labels.split(repeated, (2, 3), WHY)
    assert first == heads
    assert labels.frozen(second)


def test_freezing_reaches_every_factor_and_is_remembered() -> None:
    labels = Labels()
    flat = labels.fresh(6)
    rows, columns = labels.split(flat, (2, 3), WHY)
    labels.freeze(flat[:1], WHY)
    assert labels.frozen(rows[:1])
    assert labels.frozen(columns[:1])
    assert not labels.frozen(flat[5:])
    assert str(labels.reason(flat[0])) == "aten.topk.default at node topk has no rule"


def test_what_joins_a_frozen_axis_takes_over_its_reason() -> None:
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.freeze(a, WHY)
    labels.unify(b, a, Why("aten.add.Tensor", "add", "ties it to an axis that cannot change"))
    assert labels.frozen(b)
    assert labels.reason(b[1]) == WHY


def test_axes_of_different_length_cannot_be_the_same() -> None:
    labels = Labels()
    with pytest.raises(ValueError, match="2 and 3 positions"):
        labels.unify(labels.fresh(2), labels.fresh(3), WHY)


def _shape(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    pairs = [(i, size // i) for i in range(1, size + 1) if size % i == 0]
    return st.sampled_from(pairs)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_said_the_axes_stay_consistent(data: st.DataObject) -> None:
    """After any sequence of splits, unifications and freezes every one of them still holds, in every world."""
    labels = Labels()
    size = data.draw(st.sampled_from([6, 8, 12]))
    pool: list[Axis] = [labels.fresh(size), labels.fresh(size)]
    facts: list[tuple[str, tuple[Axis, ...]]] = []
    for _ in range(data.draw(st.integers(1, 5))):
        what = data.draw(st.sampled_from(["split", "unify", "freeze", "shuffle", "part"]))
        flat = data.draw(st.sampled_from(pool))
        if what == "unify":
            other = data.draw(st.sampled_from(pool))
            labels.unify(flat, other, WHY)
            facts.append(("same", (flat, other)))
        elif what == "freeze":
            part = flat[: data.draw(st.integers(1, 2))]
            labels.freeze(part, WHY)
            facts.append(("true", (part,)))
        elif what == "part":
            half = size // 2
            labels.unify(flat[:half], flat[half:], WHY)
            facts.append(("same", (flat[:half], flat[half:])))
        else:
            axes = labels.split(flat, data.draw(_shape(size)), WHY)
            facts.append(("product", (flat, *axes)))
            if what == "shuffle":
                pool.append(labels.merge(axes[::-1]))
    for fact, axes in facts:
        for dead in _some_worlds(labels, axes):
            lives = [_lives(labels, axis, dead) for axis in axes]
            if fact == "same":
                assert lives[0] == lives[1]
            elif fact == "true":
                assert all(lives[0])
            else:
                assert lives[0] == [r and c for r in lives[1] for c in lives[2]]


def _some_worlds(labels: Labels, axes: tuple[Axis, ...]) -> list[frozenset[int]]:
    free = sorted({v for axis in axes for label in axis for v in labels.normal(label)})
    return [frozenset(), frozenset(free[::2]), *(frozenset({v}) for v in free)]


def test_true_is_the_empty_label() -> None:
    assert Labels().normal(TRUE) == TRUE
