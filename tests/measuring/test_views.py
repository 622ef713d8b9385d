"""Views of batches: the same items as a copy has, and no memory before they are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.measuring.batches import Batch, Batches, Later


def numbered(sizes: list[int], later: bool = False) -> Batches:
    """Items that are their own number; labels are a list and a tensor by name."""
    parts, first = [], 0
    for size in sizes:
        x = torch.arange(first, first + size, dtype=torch.float32)
        batch = Batch((x[:, None].expand(-1, 3).contiguous(), x), {"name": [f"{int(v)}" for v in x], "n": x.long()})
        parts.append(Later(lambda batch=batch: batch, batch) if later else batch)
        first += size
    return Batches(tuple(parts))


def items(batches: Batches) -> list[int]:
    """The numbers of the items, after a look at whether all that belongs to one item is still together."""
    found: list[int] = []
    for batch in batches:
        numbers = batch.inputs[1].long()
        assert torch.equal(batch.inputs[0], batch.inputs[1][:, None].expand(-1, 3))
        assert torch.equal(batch.labels["n"], numbers)
        assert batch.labels["name"] == [str(n) for n in numbers.tolist()]
        assert len(batch) == len(numbers)
        found += numbers.tolist()
    return found


@pytest.mark.parametrize("later", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 99), st.integers(1, 20))
def test_whatever_is_done_to_views_is_done_to_items(later: bool, sizes: list[int], seed: int, size: int) -> None:
    whole = numbered(sizes, later)
    drawn = torch.Generator().manual_seed(seed)
    a, b = whole.split(float(torch.rand(1, generator=drawn)), seed)
    assert sorted(items(a) + items(b)) == list(range(sum(sizes)))
    assert items(a) == sorted(items(a))
    for view in (a, b):
        numbers = items(view)
        assert items(view.rebatch(size)) == numbers
        assert items(view.take(size)) == numbers[:size]
        order = torch.randperm(len(numbers), generator=drawn)
        one = next(iter(view.rebatch(len(view))))
        assert items(Batches((one.pick(order),))) == [numbers[i] for i in order]
        assert items(Batches((one.pick(order).pick(order).view(slice(0, size)),))) == [
            numbers[order[i]] for i in order[:size]
        ]
        assert sorted(items(view.shuffled(seed))) == numbers
        assert view.digest() == Batches(tuple(batch.settled() for batch in view)).digest()


def test_a_split_copies_nothing() -> None:
    made: list[int] = []
    like = numbered([50]).parts[0]

    def make() -> Batch:
        made.append(1)
        return like

    whole = Batches((Later(make, like), Later(make, like)))
    made.clear()
    a, b = whole.split(0.3)
    assert len(a) + len(b) == 100
    assert [len(batch) for batch in a.rebatch(7)][:3] == [7, 7, 7]
    assert not made
    assert len(next(iter(b)).inputs[1]) == 30
    assert made


def test_labels_of_a_view_can_be_others() -> None:
    first, _ = numbered([5, 5]).split(0.5)
    again = first.relabel(lambda batch: batch.inputs[1] * 2)
    for batch in again.rebatch(2):
        assert torch.equal(batch.labels, batch.inputs[1] * 2)
    with pytest.raises(Exception, match="one label per item"):
        first.relabel(lambda batch: torch.zeros(len(batch) + 1))
