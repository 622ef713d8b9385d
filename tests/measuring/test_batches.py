"""Batches: the same items whatever the batch size; bad data is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import DataError
from tersor.measuring.batches import Batch, Batches


def items(n: int, seed: int = 0) -> Batches:
    g = torch.Generator().manual_seed(seed)
    return Batches.of((torch.randn(n, 3, generator=g), torch.randn(n, 2, 2, generator=g)), torch.arange(n), 4)


def labels(b: Batches) -> list[int]:
    return torch.cat([p.labels for p in b]).tolist()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 40), size=st.integers(1, 50), first=st.integers(1, 50), seed=st.integers(0, 5))
def test_items_survive_every_rearrangement(n: int, size: int, first: int, seed: int) -> None:
    data = items(n)
    again = data.rebatch(size)
    assert len(data) == len(again) == n
    assert all(len(p) <= size for p in again)
    assert labels(again) == labels(again) == list(range(n))
    assert again.digest() == data.digest()
    assert labels(data.take(first)) == list(range(min(n, first)))
    a, b = data.split(0.3, seed)
    assert sorted(labels(a) + labels(b)) == list(range(n))
    assert labels(a) == sorted(labels(a))
    assert len(b) == min(max(round(0.3 * n), 1), n - 1)
    assert labels(data.rebatch(size).split(0.3, seed)[0]) == labels(a)


def test_the_digest_sees_every_value() -> None:
    data = items(6)
    digests = {data.digest(), items(6, 1).digest(), items(5).digest()}
    changed = [p.labels.clone() for p in data]
    changed[1][0] += 1
    stream = iter(changed)
    digests.add(data.relabel(lambda _: next(stream)).digest())
    digests.add(Batches(tuple(Batch(p.inputs) for p in data)).digest())
    digests.add(Batches(tuple(Batch((p.inputs[0].reshape(-1, 1, 3), p.inputs[1]), p.labels) for p in data)).digest())
    digests.add(Batches(tuple(Batch((p.inputs[0].double(), p.inputs[1]), p.labels) for p in data)).digest())
    assert len(digests) == 7


def test_items_of_different_shapes_stay_apart() -> None:
    parts = tuple(Batch((torch.zeros(3, length),), [f"{length}"] * 3) for length in (4, 4, 5))
    again = Batches(parts).rebatch(4)
    assert [tuple(p.inputs[0].shape) for p in again] == [(4, 4), (2, 4), (3, 5)]
    assert [p.labels for p in again] == [["4"] * 4, ["4"] * 2, ["5"] * 3]


def test_labels_may_be_nested() -> None:
    nested = {"boxes": [[1], [2, 3], []], "mask": (np.ones((3, 2)), torch.zeros(3))}
    data = Batches.of(np.ones((3, 1), np.float32), nested, 2)
    first, second = data
    assert first.labels["boxes"] == [[1], [2, 3]]
    assert second.labels["mask"][0].shape == (1, 2)
    assert data.digest() == data.rebatch(3).digest()


def test_a_view_copies_nothing() -> None:
    whole = torch.zeros(100, 8)
    parts = list(Batches.of(whole, None, 10).rebatch(5))
    assert all(p.inputs[0].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for p in parts)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Batches(()), "The data is empty"),
        (lambda: Batches.of(torch.zeros(0, 3)), "The data is empty"),
        (lambda: Batches((Batch(()),)), "A batch has no inputs"),
        (lambda: Batches.of((torch.zeros(3, 1), torch.zeros(4, 1))), r"Input 1 of a batch has the shape \(4, 1\)"),
        (lambda: Batches.of(torch.zeros(3, 1), torch.zeros(2)), "3 items has labels with 2 entries"),
        (lambda: Batches((Batch((torch.zeros(3),), torch.tensor(1)),)), "labels with a single value"),
        (lambda: Batches((Batch((torch.zeros(1),)), Batch((torch.zeros(1),) * 2))), r"Batches have \[1, 2\] inputs"),
        (lambda: Batches((Batch((torch.zeros(3),), "abc"),)), "labels of type str"),
        (lambda: items(4).rebatch(0), "A batch of 0 items"),
        (lambda: items(1).split(0.5), "cannot be split"),
        (
            lambda: Batches.of(torch.zeros(4, 2)).check("calibration data"),
            "All 4 items of the calibration data are zero",
        ),
        (
            lambda: Batches.of(torch.tensor([[1.0], [torch.inf]])).check("d"),
            "The d holds Inf: input 0 of batch 0, item 1",
        ),
        (
            lambda: Batches.of(torch.tensor([[1.0], [torch.nan]]), None, 1).check(),
            "holds NaN: input 0 of batch 1, item 0",
        ),
    ],
)
def test_bad_data_is_named(make, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make()


def test_integers_may_be_zero() -> None:
    Batches.of(torch.zeros(4, 2, dtype=torch.long)).check()


def test_shuffled_items_are_the_same_ones_in_a_drawn_order() -> None:
    labels = torch.arange(300)
    batches = Batches.of(labels.float()[:, None] * torch.ones(1, 3), labels, size=50)
    once, again, other = batches.shuffled(1, 32), batches.shuffled(1, 32), batches.shuffled(2, 32)
    drawn = torch.cat([b.labels for b in once])
    assert drawn.sort().values.tolist() == labels.tolist()
    assert all(torch.equal(b.inputs[0][:, 0], b.labels.float()) for b in once)
    assert [len(b) for b in once] == [32] * 9 + [12]
    assert once.digest() == again.digest() != other.digest()
    assert 100 < drawn[:100].float().mean() < 200


def test_items_of_several_shapes_and_types_are_shuffled_apart() -> None:
    parts = [
        (torch.ones(6, 2), torch.zeros(6)),
        (torch.ones(5, 3), torch.zeros(5, dtype=torch.long)),
        (torch.ones(4, 2), torch.zeros(4)),
    ]
    mixed = Batches(tuple(Batch((x,), y) for x, y in parts)).shuffled(0)
    assert sorted(tuple(b.inputs[0].shape) for b in mixed) == [(5, 3), (10, 2)]
