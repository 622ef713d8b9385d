"""How data was read: what is an input and what a label, how many items there are, of which types and in which ranges.

Nothing is refused here that can be shown: values that are not finite are counted, not spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.errors import DataError
from tersor.graph.model import Model
from tersor.inputs import data
from tersor.inputs.data import Source
from tersor.measuring.batches import Batch, Batches

_FEW = 20  # distinct values that are listed
_SHOWN = 4  # values of an item that are shown


@dataclass(frozen=True)
class Column:
    """One input, or one kind of labels. shape: without the items, None where it differs. low, high: of what is finite.

    strange: values that are NaN or Inf. distinct: different whole numbers or words, and values the first of them; None of real
    numbers.
    """

    name: str
    type: str
    shape: tuple[int, ...] | None
    low: float | None = None
    high: float | None = None
    strange: int = 0
    distinct: int | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """An item as it was read; its first values."""

    number: int
    inputs: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Described:
    """Data as it was read. sizes: items of the smallest and of the largest batch. problem: why it would be refused."""

    name: str
    how: str
    items: int
    batches: int
    sizes: tuple[int, int]
    inputs: tuple[Column, ...]
    labels: tuple[Column, ...]
    examples: tuple[Item, ...]
    problem: str | None = None


def described(source: Source, model: Model) -> Described:
    """How `source` is read for `model`. Raises `DataError` where it cannot be read at all."""
    source = data.told(source, model)
    parts = data.unchecked(source, model)
    found = Batches(parts)
    problem = None
    try:
        data.checked(parts, source, model)
    except DataError as refused:
        problem = str(refused)
    sizes = [len(part) for part in found]
    labelled = sum(part.labels is not None for part in found)
    kinds = {0: "inputs without labels", len(sizes): "inputs and labels"}
    read = kinds.get(labelled, "inputs, some with labels")
    inputs = {name: [part.inputs[i] for part in found] for i, name in enumerate(model.inputs)}
    return Described(
        source.name,
        f"all items at once, {read}" if source.whole else f"batches, {read}",
        len(found),
        len(sizes),
        (min(sizes), max(sizes)),
        tuple(_column(name, values) for name, values in inputs.items()),
        tuple(_column(name, values) for name, values in _labels(found).items()),
        tuple(_item(found, model, n) for n in sorted({0, len(found) // 2, len(found) - 1})),
        problem,
    )


def _labels(found: Batches) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for part in found:
        for name, leaf in _leaves("", part.labels):
            columns.setdefault(name, []).append(leaf)
    return columns


def _leaves(name: str, labels: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(labels, Mapping):
        for key, value in labels.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), value)
    elif isinstance(labels, tuple):
        for i, value in enumerate(labels):
            yield from _leaves(f"{name}.{i}" if name else str(i), value)
    elif labels is not None:
        yield name, labels


def _column(name: str, parts: list[Any]) -> Column:
    if not all(isinstance(part, Tensor) for part in parts):
        words = sorted(
            {str(value) for part in parts for value in (part.tolist() if isinstance(part, Tensor) else part)}
        )
        return Column(name, f"list of {_kinds(parts)}", (), distinct=len(words), values=tuple(words[:_FEW]))
    shapes = {tuple(part.shape[1:]) for part in parts}
    shape = next(iter(shapes)) if len(shapes) == 1 else None
    kind = str(parts[0].dtype).removeprefix("torch.")
    filled = [part for part in parts if part.numel()]
    finite = [part[torch.isfinite(part)] if part.is_floating_point() else part for part in filled]
    finite = [part for part in finite if part.numel()]
    low, high = (min(float(p.min()) for p in finite), max(float(p.max()) for p in finite)) if finite else (None, None)
    strange = sum(int((~torch.isfinite(part)).sum()) for part in filled)
    if parts[0].is_floating_point():
        return Column(name, kind, shape, low, high, strange)
    values = torch.cat([part.unique() for part in filled]).unique().tolist() if filled else []
    return Column(name, kind, shape, low, high, strange, len(values), tuple(str(v) for v in values[:_FEW]))


def _kinds(parts: list[Any]) -> str:
    return ", ".join(sorted({type(value).__name__ for part in parts for value in part}))


def _item(found: Batches, model: Model, number: int) -> Item:
    at, part = _found(found, number)
    inputs = {name: _short(tensor[at]) for name, tensor in zip(model.inputs, part.inputs, strict=True)}
    return Item(number, inputs, {name: _short(leaf[at]) for name, leaf in _leaves("", part.labels)})


def _found(found: Batches, number: int) -> tuple[int, Batch]:
    for part in found:
        if number < len(part):
            return number, part
        number -= len(part)
    raise IndexError(number)


def _short(value: Any) -> str:
    if not isinstance(value, Tensor):
        text = str(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    flat = value.flatten()
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in flat[:_SHOWN].tolist()]
    return " ".join([*shown, *(["..."] if flat.numel() > _SHOWN else [])])
