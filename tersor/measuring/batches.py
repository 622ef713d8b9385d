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

    def pick(self, index: slice | Tensor) -> Batch:
        """The items at `index`; a slice copies nothing."""
        return Batch(tuple(t[index] for t in self.inputs), _pick(self.labels, index))


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches in memory. `len` counts items; iteration gives batches, the same every time.

    Raises `DataError` when there is nothing, or where inputs and labels do not have the same number of items.
    """

    parts: tuple[Batch, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(p for p in self.parts if _whole(p)))
        if not self.parts:
            raise DataError("The data is empty: no batch holds an item. Give at least one item.")
        counts = sorted({len(p.inputs) for p in self.parts})
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
        alike = groupby(self.parts, key=_item_shapes)
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
            alike.setdefault(_item_shapes(part), []).append(part)
        for parts in alike.values():
            order = torch.randperm(sum(map(len, parts)), generator=drawn)
            found += [whole.pick(order) for whole in _regroup(parts, len(order))]
        return Batches(tuple(found)).rebatch(size)

    def copied(self) -> Batches:
        """The same items in memory of their own, for who may change them."""
        clone = partial(pytree.tree_map_only, Tensor, torch.clone)
        return Batches(tuple(Batch(clone(part.inputs), clone(part.labels)) for part in self.parts))

    def relabel(self, label: Callable[[Batch], Labels]) -> Batches:
        """The same inputs, each batch with the labels that `label` gives it."""
        return Batches(tuple(Batch(p.inputs, label(p)) for p in self.parts))

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
        for i in range(len(self.parts[0].inputs)):
            tensors = [p.inputs[i] for p in self.parts]
            for number, tensor in enumerate(tensors):
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise DataError(_not_finite(name, i, number, tensor))
            if tensors[0].is_floating_point() and not any(bool(t.any()) for t in tensors):
                raise DataError(f"All {len(self)} items of the {name} are zero in input {i}; give real data.")

    def _where(self, masks: Sequence[Tensor]) -> Batches:
        chosen = (p.pick(m.nonzero().flatten()) for p, m in zip(self.parts, masks, strict=True))
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
    for name, leaf in _leaves("labels", part.labels):
        single = isinstance(leaf, Tensor) and leaf.ndim == 0
        if single or len(leaf) != len(part):
            seen = "a single value" if single else f"{len(leaf)} entries"
            raise DataError(f"A batch of {len(part)} items has {name} with {seen}; give one label per item.")
    return len(part) > 0


def _item_shapes(part: Batch) -> tuple:
    leaves = [leaf for _, leaf in _leaves("", part.labels)]
    return tuple((t.dtype, tuple(t.shape[1:])) if isinstance(t, Tensor) else None for t in [*part.inputs, *leaves])


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
    inputs = tuple(torch.cat(column) for column in zip(*(p.inputs for p in pieces), strict=True))
    return Batch(inputs, _cat([p.labels for p in pieces]))


def _cat(labels: list[Labels]) -> Labels:
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
