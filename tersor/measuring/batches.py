"""Data as batches that can be read again and again.

Every input and every label has the items on its first axis; the items of different batches may differ in shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import DataError
from tersor.maths.bits import raw

Labels = Any
"""None, a tensor or a list with one entry per item, or a tuple or mapping of those."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some items: `inputs` are what the model takes, flat, each (items, ...); `labels` what it should give."""

    inputs: tuple[Tensor, ...]
    labels: Labels = None

    def __len__(self) -> int:
        return int(self.inputs[0].shape[0])

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The inputs as arrays, as a `Runner` takes them."""
        return tuple(t.detach().cpu().numpy() for t in self.inputs)

    @property
    def width(self) -> int:
        """How many inputs there are."""
        return len(self.inputs)

    @property
    def kinds(self) -> tuple:
        """Type and shape of an item of each input and of each tensor of labels, None for labels that are none."""
        return (*(_kind(t) for t in self.inputs), *_kinds(self.labels))

    def whole(self) -> bool:
        """Whether there are items. Raises `DataError` where inputs and labels do not have the same number of them."""
        return _whole(self)

    def pick(self, index: slice | Tensor) -> Batch:
        """The items at `index`; a slice copies nothing."""
        return Batch(tuple(t[index] for t in self.inputs), _pick(self.labels, index))

    def view(self, index: slice | Tensor) -> Batch:
        """The same, and nothing is copied before it is read."""
        return _View(((self, index),)) if isinstance(index, Tensor) else self.pick(index)

    def pieces(self) -> tuple[tuple[Batch, slice | Tensor], ...] | None:
        """What it is a view of; None where it is none."""
        return None

    @property
    def relabelled(self) -> bool:
        """Whether its labels are others than those of its `pieces`."""
        return False

    def labelled(self, labels: Labels) -> Batch:
        """The same inputs with other labels."""
        return Batch(self.inputs, labels)

    def settled(self) -> Batch:
        """The same, in memory."""
        return self


class _View(Batch):
    """Items of other batches, which are brought together each time that they are read, and kept nowhere."""

    _pieces: tuple[tuple[Batch, slice | Tensor], ...]
    _own: tuple[Labels] | None

    def __init__(self, pieces: Sequence[tuple[Batch, slice | Tensor]], own: tuple[Labels] | None = None):
        """own: other labels than those of the items, in a tuple of one."""
        object.__setattr__(self, "_pieces", tuple(pieces))
        object.__setattr__(self, "_own", own)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        read = {id(of): of.inputs for of, _ in self._pieces}
        if len(read) == len(self._pieces):
            columns = zip(*([t[index] for t in read[id(of)]] for of, index in self._pieces), strict=True)
            return tuple(column[0] if len(column) == 1 else torch.cat(column) for column in columns)
        found = tuple(t.new_empty((len(self), *t.shape[1:])) for t in read[id(self._pieces[0][0])])
        for one, tensors in read.items():  # each batch is read once, however many pieces of it there are
            to, places, at = [], [], 0
            for of, index in self._pieces:
                count = _count(of, index)
                if id(of) == one:
                    to.append(torch.arange(at, at + count))
                    places.append(_within(of, index))
                at += count
            for whole, t in zip(found, tensors, strict=True):
                whole[torch.cat(to)] = t[torch.cat(places)]
        return found

    @property
    def labels(self) -> Labels:
        return self._own[0] if self._own else _cat([_pick(of.labels, index) for of, index in self._pieces])

    def __len__(self) -> int:
        return sum(_count(of, index) for of, index in self._pieces)

    @property
    def width(self) -> int:
        return self._pieces[0][0].width

    @property
    def kinds(self) -> tuple:
        known = self._pieces[0][0].kinds
        return known if self._own is None else known[: self.width] + _kinds(self._own[0])

    def whole(self) -> bool:
        if self._own is not None:
            _check_labels(self._own[0], len(self))
        return len(self) > 0

    def pick(self, index: slice | Tensor) -> Batch:
        places = torch.arange(len(self))[index]
        ends = torch.tensor(list(accumulate(_count(of, each) for of, each in self._pieces)))
        which, counts = torch.unique_consecutive(torch.searchsorted(ends, places, right=True), return_counts=True)
        pieces: list[tuple[Batch, slice | Tensor]] = []
        for number, inside in zip(which.tolist(), places.split(counts.tolist()), strict=True):
            of, each = self._pieces[number]
            pieces.append((of, _within(of, each)[inside - (int(ends[number]) - _count(of, each))]))
        return _View(pieces, None if self._own is None else (_pick(self._own[0], index),))

    def view(self, index: slice | Tensor) -> Batch:
        return self.pick(index)

    def pieces(self) -> tuple[tuple[Batch, slice | Tensor], ...] | None:
        return self._pieces

    @property
    def relabelled(self) -> bool:
        return self._own is not None

    def labelled(self, labels: Labels) -> Batch:
        return _View(self._pieces, (labels,))

    def settled(self) -> Batch:
        return Batch(self.inputs, self.labels)


class Later(Batch):
    """A batch that is made each time that it is read, the same every time."""

    _make: Callable[[], Batch]
    _count: int
    _width: int
    _kinds: tuple

    def __init__(self, make: Callable[[], Batch], like: Batch):
        """like: what `make` gives."""
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_count", len(like))
        object.__setattr__(self, "_width", like.width)
        object.__setattr__(self, "_kinds", like.kinds)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self._make().inputs

    @property
    def labels(self) -> Labels:
        return self._make().labels

    def __len__(self) -> int:
        return self._count

    @property
    def width(self) -> int:
        return self._width

    @property
    def kinds(self) -> tuple:
        return self._kinds

    def whole(self) -> bool:
        return self._make().whole()

    def pick(self, index: slice | Tensor) -> Batch:
        return _View(((self, index),))

    def view(self, index: slice | Tensor) -> Batch:
        return self.pick(index)

    def pieces(self) -> tuple[tuple[Batch, slice | Tensor], ...] | None:
        return ((self, slice(None)),)

    def labelled(self, labels: Labels) -> Batch:
        return _View(((self, slice(None)),), (labels,))

    def settled(self) -> Batch:
        return self._make()


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches in memory. `len` counts items; iteration gives batches, the same every time.

    Raises `DataError` when there is nothing, or where inputs and labels do not have the same number of items.
    """

    parts: tuple[Batch, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(p for p in self.parts if p.whole()))
        if not self.parts:
            raise DataError("The data is empty: no batch holds an item. Give at least one item.")
        counts = sorted({p.width for p in self.parts})
        if len(counts) > 1:
            raise DataError(f"Batches have {counts} inputs; every batch must have the same number of inputs.")

    @classmethod
    def of(cls, inputs: Any, labels: Labels = None, size: int = 64) -> Batches:
        """Batches of `size` over arrays or tensors that hold all items; `inputs` is one of them or a tuple."""
        flat = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        whole = Batch(tuple(torch.as_tensor(x) for x in flat), _as_tensors(labels))
        return cls((whole,)).rebatch(size)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.parts)

    def __len__(self) -> int:
        return sum(len(p) for p in self.parts)

    def take(self, n: int) -> Batches:
        """The first `n` items (all, where there are fewer), in the same batches."""
        starts = accumulate((len(p) for p in self.parts), initial=0)
        return Batches(tuple(p.pick(slice(0, n - s)) for p, s in zip(self.parts, starts, strict=False) if s < n))

    def rebatch(self, size: int) -> Batches:
        """The same items in the same order, `size` at a time; a batch also ends where the items' shape changes."""
        if size < 1:
            raise DataError(f"A batch of {size} items was asked for; it must hold at least 1.")
        alike = groupby(self.parts, key=lambda part: part.kinds)
        return Batches(tuple(batch for _, run in alike for batch in _regroup(list(run), size)))

    def split(self, fraction: float, seed: int = 0) -> tuple[Batches, Batches]:
        """Two disjoint parts, the second with `fraction` of the items (at least one in each), order kept."""
        total = len(self)
        if total < 2:
            raise DataError("The data has 1 item, which cannot be split in two; give separate evaluation data.")
        count = min(max(round(total * fraction), 1), total - 1)
        second = torch.zeros(total, dtype=torch.bool)
        second[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]] = True
        masks = second.split([len(p) for p in self.parts])
        most = max(len(p) for p in self.parts)  # a few items of each batch would be hundreds of small batches
        return self._where([~m for m in masks]).rebatch(most), self._where(list(masks)).rebatch(most)

    def shuffled(self, seed: int = 0, size: int = 64) -> Batches:
        """The same items in an order drawn by `seed`, so that the first n of them are a fair sample; those of one shape
        stay together."""
        drawn = torch.Generator().manual_seed(seed)
        found = []
        alike: dict[tuple, list[Batch]] = {}
        for part in self.parts:
            alike.setdefault(part.kinds, []).append(part)
        for parts in alike.values():
            order = torch.randperm(sum(map(len, parts)), generator=drawn)
            found += [whole.pick(order).settled() for whole in _regroup(parts, len(order))]
        return Batches(tuple(found)).rebatch(size)

    def copied(self) -> Batches:
        """The same items in memory of their own, for who may change them."""
        clone = partial(pytree.tree_map_only, Tensor, torch.clone)
        return Batches(tuple(Batch(clone(part.inputs), clone(part.labels)) for part in self.parts))

    def relabel(self, label: Callable[[Batch], Labels]) -> Batches:
        """The same inputs, each batch with the labels that `label` gives it."""
        return Batches(tuple(p.labelled(label(p)) for p in self.parts))

    def digest(self) -> str:
        """sha256 of the items, in order, whatever the batches they come in."""
        streams: dict[str, _Stream] = {}
        for part in self.parts:
            for name, leaf in _leaves("labels", part.labels):
                streams.setdefault(name, _Stream()).add(leaf)
            for i, tensor in enumerate(part.inputs):
                streams.setdefault(f"input {i}", _Stream()).add(tensor)
        lines = (f"{name} {streams[name].hexdigest()}" for name in sorted(streams))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def unordered(self) -> int:
        """Sum of the sha256 of each item's inputs: the same in whatever order and batches the items come."""
        total = 0
        for part in self.parts:
            for i in range(len(part)):
                found = hashlib.sha256()
                for tensor in part.inputs:
                    found.update(f"<{tensor.dtype} {tuple(tensor.shape[1:])}>".encode())
                    found.update(raw(tensor[i].cpu()).numpy().data)
                total += int.from_bytes(found.digest())
        return total % (1 << 256)

    def check(self, name: str = "data") -> None:
        """Raise `DataError` that says where, if an input holds NaN or Inf, or if all items are zero."""
        for i in range(self.parts[0].width):
            alive = False
            for number, tensor in enumerate(p.inputs[i] for p in self.parts):
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise DataError(_not_finite(name, i, number, tensor))
                alive = alive or not tensor.is_floating_point() or bool(tensor.any())
            if not alive:
                raise DataError(f"All {len(self)} items of the {name} are zero in input {i}; give real data.")

    def _where(self, masks: Sequence[Tensor]) -> Batches:
        chosen = (p.view(m.nonzero().flatten()) for p, m in zip(self.parts, masks, strict=True))
        return Batches(tuple(chosen))


class _Stream:
    """A hash of items that does not see where one batch ends and the next begins."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._kind = ""

    def add(self, items: Any) -> None:
        if isinstance(items, list):
            for item in items:
                self._hash.update(_bytes(item))
            return
        kind = f"{items.dtype} {tuple(items.shape[1:])}"
        if kind != self._kind:
            self._hash.update(f"<{kind}>".encode())
            self._kind = kind
        self._hash.update(raw(items.cpu()).numpy().data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _whole(part: Batch) -> bool:
    if not part.inputs:
        raise DataError("A batch has no inputs; each batch must be a tuple of tensors, or (inputs, labels).")
    for i, tensor in enumerate(part.inputs):
        if tensor.ndim == 0 or tensor.shape[0] != part.inputs[0].shape[0]:
            first = tuple(part.inputs[0].shape)
            raise DataError(
                f"Input {i} of a batch has the shape {tuple(tensor.shape)} where input 0 has {first}; "
                "the first axis of every input must be the items of the batch."
            )
    _check_labels(part.labels, len(part))
    return len(part) > 0


def _check_labels(labels: Labels, items: int) -> None:
    for name, leaf in _leaves("labels", labels):
        single = isinstance(leaf, Tensor) and leaf.ndim == 0
        if single or len(leaf) != items:
            seen = "a single value" if single else f"{len(leaf)} entries"
            raise DataError(f"A batch of {items} items has {name} with {seen}; give one label per item.")


def _kind(value: Any) -> tuple | None:
    return (value.dtype, tuple(value.shape[1:])) if isinstance(value, Tensor) else None


def _kinds(labels: Labels) -> tuple:
    return tuple(_kind(leaf) for _, leaf in _leaves("", labels))


def _regroup(parts: list[Batch], size: int) -> Iterator[Batch]:
    pieces: list[Batch] = []
    for part in parts:
        start = 0
        while start < len(part):
            room = size - sum(len(p) for p in pieces)
            pieces.append(part.pick(slice(start, start + room)))
            start += room
            if sum(len(p) for p in pieces) == size:
                yield _join(pieces)
                pieces = []
    if pieces:
        yield _join(pieces)


def _join(pieces: list[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    views = [p.pieces() for p in pieces]
    if any(views):
        flat = [each for p, view in zip(pieces, views, strict=True) for each in view or ((p, slice(None)),)]
        return _View(flat, (_cat([p.labels for p in pieces]),) if any(p.relabelled for p in pieces) else None)
    inputs = tuple(torch.cat(column) for column in zip(*(p.inputs for p in pieces), strict=True))
    return Batch(inputs, _cat([p.labels for p in pieces]))


def _within(batch: Batch, index: slice | Tensor) -> Tensor:
    """The places of the items of `batch` at `index`."""
    return torch.arange(len(batch))[index]


def _count(batch: Batch, index: slice | Tensor) -> int:
    if isinstance(index, slice):
        return len(range(*index.indices(len(batch))))
    return int(index.sum()) if index.dtype == torch.bool else len(index)


def _cat(labels: list[Labels]) -> Labels:
    if len(labels) == 1:
        return labels[0]
    first = labels[0]
    if isinstance(first, Tensor):
        return torch.cat(labels)
    if isinstance(first, list):
        return [item for each in labels for item in each]
    if isinstance(first, Mapping):
        return {key: _cat([each[key] for each in labels]) for key in first}
    if isinstance(first, tuple):
        return tuple(_cat(list(column)) for column in zip(*labels, strict=True))
    return None


def _pick(labels: Labels, index: slice | Tensor) -> Labels:
    if isinstance(labels, list):
        return labels[index] if isinstance(index, slice) else [labels[i] for i in index.tolist()]
    if isinstance(labels, Mapping):
        return {key: _pick(value, index) for key, value in labels.items()}
    if isinstance(labels, tuple):
        return tuple(_pick(value, index) for value in labels)
    return None if labels is None else labels[index]


def _as_tensors(labels: Labels) -> Labels:
    if isinstance(labels, Mapping):
        return {key: _as_tensors(value) for key, value in labels.items()}
    if isinstance(labels, tuple):
        return tuple(_as_tensors(value) for value in labels)
    return labels if labels is None or isinstance(labels, list) else torch.as_tensor(labels)


def _leaves(name: str, labels: Labels) -> Iterator[tuple[str, Any]]:
    if isinstance(labels, Mapping):
        for key, value in labels.items():
            yield from _leaves(f"{name}[{key!r}]", value)
    elif isinstance(labels, tuple):
        for i, value in enumerate(labels):
            yield from _leaves(f"{name}[{i}]", value)
    elif isinstance(labels, Tensor | list):
        yield name, labels
    elif labels is not None:
        kind = type(labels).__name__
        raise DataError(f"A batch has {name} of type {kind}; labels are a tensor, a list, or a tuple or dict of those.")


def _bytes(item: Any) -> bytes:
    if isinstance(item, Tensor):
        return f"<{item.dtype} {tuple(item.shape)}>".encode() + bytes(raw(item.cpu()).numpy().data)
    if isinstance(item, np.ndarray):
        return _bytes(torch.from_numpy(item))
    if isinstance(item, Mapping):
        return b"{" + b"".join(_bytes(k) + _bytes(v) for k, v in item.items()) + b"}"
    if isinstance(item, list | tuple):
        return b"[" + b"".join(_bytes(each) for each in item) + b"]"
    if item is None or isinstance(item, str | int | float | bytes | np.generic):
        return f"{item!r},".encode()
    raise DataError(f"A label of type {type(item).__name__} has no content to hash; use numbers, strings or tensors.")


def _not_finite(name: str, i: int, number: int, tensor: Tensor) -> str:
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero().flatten()
    seen = "NaN" if torch.isnan(tensor).any() else "Inf"
    return (
        f"The {name} holds {seen}: input {i} of batch {number}, item {int(bad[0])} ({len(bad)} such items there)."
        " Remove or repair these items."
    )
