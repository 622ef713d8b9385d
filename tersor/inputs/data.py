"""Data as users bring it: a function that returns batches, an `.npz`, or Python objects; what comes out is `Batches`.

A batch is the inputs alone or (inputs, labels); inputs are one tensor or array, a tuple of them, or a dict by name.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from tersor import deadline
from tersor.errors import DataError, DataWarning
from tersor.graph.model import Model
from tersor.inputs import arrays, functions
from tersor.inputs.models import Brought
from tersor.inputs.reading import (
    INPUT_KEYS,
    Taken,
    all_at_once,
    by_columns,
    in_columns,
    may_be_one,
    part,
    parted,
    tensor,
)
from tersor.measuring.batches import Batch, Batches, Later
from tersor.memory import CONTAINER, Room
from tersor.shelf import RESIDENT, Shelf

TOGETHER = 64  # items of a batch, where the data is not in batches
_HUGE = 1e18
_APART, _FEW = 30, 0.1  # times the usual size, and the share of items, that look like mistakes
_EVALUATION = 200  # items: fewer cannot tell a drop of 0.5 % from chance


@dataclass(frozen=True)
class Source:
    """Data as it was read, not yet fitted to a model.

    whole: `raw[0]` holds all items at once. either: a list or tuple that is all items at once or several batches, which
    the model tells; `raw` are its entries.
    """

    name: str
    raw: Sequence[Any]
    whole: bool = False
    either: list | tuple | None = None

    @property
    def on_disk(self) -> bool:
        """Whether a part of it is not in memory."""
        return isinstance(self.raw, _Collected) and self.raw.shelf.on_disk


def bring(data: Any, what: str = "DATA", room: Room = CONTAINER) -> Source:
    """Read the data that `data` names or is.

    A string is `path/to/file.py:function`, `package.module:function` or `path/to/arrays.npz`. In Python also an
    iterable of batches, a function that returns one, `Batches`, an array, (inputs, labels) arrays or a dict of arrays.
    Raises `DataError` where it is missing, empty, or more than fits into half of the free memory.
    """
    if isinstance(data, str | Path):
        name = str(data)
        if name.endswith(".npz"):
            parts = arrays.in_parts(Path(name), TOGETHER)
            if parts is None:
                return Source(name, (arrays.read(Path(name), room),), whole=True)
            return Source(name, _collect(parts, f"{what} '{name}'", room))
        function = functions.named(name, what, DataError)
        return _read(functions.called(function, f"{what} '{name}'", DataError), name, f"{what} '{name}'", room)
    name = functions.origin(data)
    if callable(data) and not isinstance(data, Iterable):
        data = functions.called(data, f"{what} {name}", DataError)
    return _read(data, name, f"{what} {name}", room)


def example(source: Source, brought: Brought) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first batch with items as the model's (args, kwargs), at most two, for a model that came without an example."""
    raw, wants = next((raw for raw in source.raw if _has_items(raw)), source.raw[0]), brought.wants
    if isinstance(raw, Batch):
        return tuple(t[:2] for t in raw.inputs), {}
    if wants > 1 and isinstance(raw, Tensor | np.ndarray) and len(source.either or ()) in (wants, wants + 1):
        raw = source.raw
    if in_columns(source.either):
        raw = tuple(column[0] for column in source.either or ())
    module = brought.module
    names = tuple(inspect.signature(module.forward).parameters) if isinstance(module, torch.nn.Module) else ()
    inputs, _ = parted(raw, wants, names)
    named = isinstance(inputs, Mapping)
    if named and wants <= 1 and len(inputs) == 1 and next(iter(inputs)) in INPUT_KEYS:
        inputs, named = tuple(inputs.values()), False
    taken = pytree.tree_map(lambda t: _first_two(t, source.name), inputs)
    if named:
        return (), dict(taken)
    return (tuple(taken) if isinstance(taken, list | tuple) else (taken,)), {}


def batches(source: Source, model: Model | Taken, labels: bool = False) -> Batches:
    """The data as the model takes it: flat inputs in the order of `model.inputs`, checked.

    labels: whether every batch must have labels. Raises `DataError` where the data is empty, has other shapes or types
    than the model's example, can be read in two ways, holds NaN, Inf or values whose square overflows, or is constant.
    """
    source = told(source, model)
    found = checked(unchecked(source, model), source, model, labels)
    _warn_of_outliers(found, model, source.name)
    return found.rebatch(TOGETHER) if source.whole else found


def told(source: Source, model: Model | Taken) -> Source:
    """The source, where the model has told whether it is all items at once. Raises `DataError` where it may be both."""
    if in_columns(source.either):
        assert isinstance(source.either, tuple)
        columns = by_columns(source.either, model, source.name)
        return Source(source.name, tuple(zip(*source.either, strict=True)) if columns else source.raw)
    if source.either is not None and all_at_once(source.either, model, source.name):
        return Source(source.name, (source.either,), whole=True)
    return source


def unchecked(source: Source, model: Model | Taken) -> tuple[Batch, ...]:
    """The batches as the model takes them, whatever their values are."""
    makers = [partial(_batch, source, model, i) for i in range(len(source.raw))]
    return tuple(Later(make, make()) if source.on_disk else make() for make in makers)


def _batch(source: Source, model: Model | Taken, number: int) -> Batch:
    return part(source.raw[number], model, f"batch {number} of {source.name}")


def checked(parts: Sequence[Batch], source: Source, model: Model | Taken, labels: bool = False) -> Batches:
    """The same, where their values can be used. Raises `DataError`."""
    for i, batch in enumerate(parts):
        _check_values(batch, model, source.name, i, source.whole)
    found = Batches(tuple(parts))
    _check_labels(found, source.name, labels)
    _check_constant(found, source.name)
    return found


def split(whole: Batches, seed: int = 0, fraction: float = 0.2) -> tuple[Batches, Batches]:
    """(calibration, evaluation): disjoint, seeded, `fraction` for evaluation but at least 200 items, at most half."""
    count = min(max(round(len(whole) * fraction), _EVALUATION), len(whole) // 2)
    return whole.split(count / len(whole), seed)


def _read(found: Any, name: str, where: str, room: Room) -> Source:
    if isinstance(found, Batches):
        return Source(name, tuple(found))
    if isinstance(found, Mapping | Tensor | np.ndarray):
        return Source(name, (found,), whole=True)
    if may_be_one(found) or in_columns(found):
        return Source(name, tuple(found), either=found)
    if isinstance(found, Dataset) and not isinstance(found, Iterable):
        raise DataError(
            f"{where} gave a {type(found).__name__} of single items; give DataLoader(dataset, batch_size=64)."
        )
    if not isinstance(found, Iterable) or isinstance(found, str | bytes):
        raise DataError(
            f"{where} gave a {type(found).__name__}; expected an iterable of batches (inputs, or (inputs, labels))."
        )
    raw: Sequence[Any] = (
        found
        if isinstance(found, list | tuple)
        else functions.called(lambda: _collect(found, where, room), where, DataError)
    )
    if not raw:
        raise DataError(f"{where} gave no batches; give at least one batch of items.")
    pair = list(raw) if len(raw) == 2 else []
    return Source(name, raw, either=pair if may_be_one(pair) else None)


class _Collected(Sequence[Any]):
    """Batches as they came, in memory as far as they may be there, else on disk."""

    def __init__(self, resident: int):
        self.shelf: Shelf[Tensor] = Shelf(resident=resident)
        self._batches: list[tuple[list[Any], Any]] = []

    def add(self, raw: Any) -> None:
        """Keep a copy, because loaders reuse their buffers."""
        leaves, structure = pytree.tree_flatten(raw)
        kept = [self._kept(f"{len(self._batches)}/{i}", leaf) for i, leaf in enumerate(leaves)]
        self._batches.append((kept, structure))

    def _kept(self, name: str, leaf: Any) -> Any:
        """What to find the leaf by: itself, or its name on the shelf and whether it was an array."""
        numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub" and leaf.dtype.isnative
        if isinstance(leaf, Tensor) or numbers:
            copy = leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else torch.from_numpy(leaf.copy())
            self.shelf[name] = copy
            return _OnShelf(name, numbers)
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    def __getitem__(self, index: Any) -> Any:
        kept, structure = self._batches[index]
        return pytree.tree_unflatten([self._found(leaf) for leaf in kept], structure)

    def _found(self, leaf: Any) -> Any:
        if not isinstance(leaf, _OnShelf):
            return leaf
        found = self.shelf[leaf.name]
        return found.numpy() if leaf.array else found

    def __len__(self) -> int:
        return len(self._batches)


@dataclass(frozen=True)
class _OnShelf:
    name: str
    array: bool


def _collect(found: Iterable[Any], where: str, room: Room) -> _Collected:
    most = room.free // 2
    kept = _Collected(min(RESIDENT, most // 4))
    for raw in found:
        deadline.check()
        kept.add(raw)
        if kept.shelf.held > most:
            raise DataError(f"{where}: {len(kept)} batches fill half of the free memory; give fewer batches.")
    return kept


def _has_items(raw: Any) -> bool:
    inputs = raw.inputs if isinstance(raw, Batch) else raw
    return all(len(t) > 0 for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor | np.ndarray) and t.ndim)


def _first_two(value: Any, where: str) -> Tensor:
    found = tensor(value, f"The first batch of {where}")
    return found[:2] if found.ndim else found


def _check_values(batch: Batch, model: Model | Taken, name: str, number: int, whole: bool) -> None:
    for values, called in zip(batch.inputs, model.inputs, strict=True):
        if not values.is_floating_point() or not values.numel():
            continue
        bad, kind = ~torch.isfinite(values), "NaN or Inf"
        if not bool(bad.any()):
            bad, kind = values.abs() > _HUGE, f"values above {_HUGE:g}, whose square overflows"
        if bool(bad.any()):
            items = bad.reshape(len(values), -1).any(1).nonzero().flatten()
            place = "" if whole else f"batch {number}, "
            raise DataError(
                f"Input '{called}' of {name} holds {int(bad.sum())} {kind}, the first in {place}item {int(items[0])}; "
                "remove or repair these items."
            )


def _check_labels(found: Batches, name: str, wanted: bool) -> None:
    missing = [i for i, b in enumerate(found) if b.labels is None]
    if missing and (wanted or len(missing) < len(found.parts)):
        raise DataError(
            f"Batch {missing[0]} of {name} has no labels; give (inputs, labels), or choose a metric that needs none "
            "(agreement, cosine)."
        )


def without_outliers(found: Batches) -> Batches:
    """The items, but for few that are far larger than the others: one grid cannot hold both, and most are the usual ones."""
    odd = torch.zeros(len(found), dtype=torch.bool)
    for place in range(found.parts[0].width):
        odd |= _outliers(found, place)
    if not bool(odd.any()):
        return found
    masks = odd.split([len(batch) for batch in found.parts])
    return Batches(tuple(batch.view(~mask) for batch, mask in zip(found.parts, masks, strict=True)))


def _outliers(found: Batches, place: int) -> Tensor:
    """bool (items,): whose values of this input reach _APART times as far as a usual item's; none where they are many."""
    first = found.parts[0].inputs[place]
    nobody = torch.zeros(len(found), dtype=torch.bool)
    if not first.is_floating_point() or not first[0].numel():
        return nobody
    sizes = torch.cat([x.reshape(len(x), -1).abs().amax(1) for x in (batch.inputs[place] for batch in found)])
    odd = sizes > _APART * sizes.median()
    return odd if sizes.median() > 0 and int(odd.sum()) <= _FEW * len(sizes) else nobody


def _warn_of_outliers(found: Batches, model: Model | Taken, name: str) -> None:
    for place, called in enumerate(model.inputs):
        apart = _outliers(found, place).nonzero().flatten()
        if len(apart):
            warnings.warn(
                f"{len(apart)} of {len(found)} items of {name} hold values of '{called}' more than {_APART} times as large as "
                f"those of a usual item; the first is item {int(apart[0])}. They are not used for calibration; if they are "
                "mistakes, remove them.",
                DataWarning,
                stacklevel=3,
            )


def _check_constant(found: Batches, name: str) -> None:
    """Refuse data in which nothing varies; one of several inputs may well be constant."""
    first = found.parts[0].inputs
    if len(found) * sum(t[0].numel() for t in first) < 2:
        return
    filled = {place: t.flatten()[0].clone() for place, t in enumerate(first) if t.numel()}
    values = filled.values()
    if all(bool((b.inputs[place] == value).all()) for b in found for place, value in filled.items()):
        shown = ", ".join(f"{float(value):g}" for value in values)
        raise DataError(f"All {len(found)} items of {name} hold nothing but {shown}; give real data.")
