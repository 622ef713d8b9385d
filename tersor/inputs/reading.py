"""What a raw batch holds: the model's inputs, in its order, and the labels. Read as it was meant, or refused.

Two arrays may be a batch (inputs, labels), two inputs, or two batches. What the model takes and gives tells which, and where
it does not, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import DataError
from tersor.graph.model import Model
from tersor.measuring.batches import Batch, Labels

INPUT_KEYS = ("x", "inputs", "images", "input")
LABEL_KEYS = ("y", "labels", "label", "targets", "target")


@dataclass(frozen=True)
class Taken:
    """What takes the data, where there is no `Model`: flat inputs by name, an example of them, and what it answered."""

    inputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    answers: tuple[Tensor, ...] = ()

    def arguments(self, flat: Sequence[Tensor]) -> tuple[tuple, dict]:
        """The flat inputs as (args, kwargs): all by position."""
        return tuple(flat), {}


def may_be_one(found: Any) -> bool:
    """Whether a list or tuple may be all items at once, (inputs, labels) or several inputs, rather than batches."""
    if not isinstance(found, list | tuple) or len(found) < 2:
        return False
    if all(isinstance(each, Tensor | np.ndarray) and each.ndim > 0 for each in found):
        return True
    return len(found) == 2 and isinstance(found[0], list | tuple | Mapping) and not isinstance(found[1], list | tuple)


def in_columns(found: Any) -> bool:
    """Whether this is a list of inputs and a list of labels, one of each for a batch, or else two batches."""
    lists = isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, list) for each in found)
    return lists and len(found[0]) == len(found[1]) > 0 and all(_flat(each) for each in found)


def by_columns(found: tuple, model: Model | Taken, name: str) -> bool:
    """Whether what is `in_columns` is a list of inputs and one of labels. Raises `DataError` where it can be both."""
    answers = model.run(*model.example) if isinstance(model, Model) else model.answers
    columns, batches = (_read(raws, model) for raws in (list(zip(*found, strict=True)), found))
    if columns is None or batches is None:
        return columns is not None
    if all(plausible(b.labels, answers) for b in (*columns, *batches)):
        raise DataError(
            f"{name} gave a tuple of 2 lists, which may be inputs and labels of {len(columns)} batches, or 2 batches of inputs "
            "and labels, and the model can take both; return a list of (inputs, labels)."
        )
    return all(plausible(b.labels, answers) for b in columns)


def all_at_once(found: list | tuple, model: Model | Taken, name: str) -> bool:
    """Whether `found` is all items at once; else it is batches. Raises `DataError` where it can be both.

    A tuple is taken for (inputs, labels) as soon as the inputs fit the model; a list only where the labels do, too.
    """
    answers = model.run(*model.example) if isinstance(model, Model) else model.answers
    whole, batches = _read((found,), model), _read(found, model)
    meant = whole is not None and all(plausible(b.labels, answers) for b in whole)
    if whole is None or batches is None:
        fits = whole is not None and (meant or isinstance(found, tuple))
        return fits or (batches is None and _unlike(found))
    if meant and all(plausible(b.labels, answers) for b in batches):
        kind = "arrays" if _flat(found) else "entries"
        raise DataError(
            f"{name} gave a {type(found).__name__} of 2 {kind}, which may be inputs and labels of {len(whole[0])} items, or 2 "
            f"batches, {sum(map(len, batches))} items in all, and the model can take both; return [(inputs, labels)] for the "
            "one, [(first,), (second,)] for the other."
        )
    return meant


def plausible(labels: Labels, answers: Sequence[Tensor]) -> bool:
    """Whether labels can be those of what a model answers: one an item, one a place, or in the shape of an output."""
    if isinstance(labels, Mapping):
        labels = tuple(labels.values())
    if isinstance(labels, tuple):
        pairs = zip(labels, answers, strict=False)
        return len(labels) == len(answers) and all(plausible(label, (answer,)) for label, answer in pairs)
    if not isinstance(labels, Tensor) or not answers:
        return True
    return any(_bare(labels.shape[1:]) in _known(answer) for answer in answers)


def parted(raw: Any, wants: int, names: Sequence[str] = ()) -> tuple[Any, Labels]:
    """(inputs, labels) of a raw batch, for a model that requires `wants` inputs called `names`."""
    if isinstance(raw, Mapping):
        keys = [k for k in LABEL_KEYS if k in raw and k not in names and len(raw) > 1]
        if len(keys) > 1:
            raise DataError(
                f"A batch has both '{keys[0]}' and '{keys[1]}'; give the labels under one of these names only."
            )
        return {k: v for k, v in raw.items() if k not in keys}, _labels(raw[keys[0]]) if keys else None
    if not isinstance(raw, list | tuple):
        return raw, None
    nested = len(raw) == 2 and isinstance(raw[0], list | tuple | Mapping)
    if nested or (len(raw) > 1 and len(raw) == max(wants, 1) + 1):
        rest = raw[0] if nested or len(raw) == 2 else tuple(raw[:-1])
        return rest, _labels(raw[-1])
    return raw, None


def part(raw: Any, model: Model | Taken, where: str) -> Batch:
    """A raw batch as the model takes it. Raises `DataError` that says how it was read and what was wanted."""
    if isinstance(raw, Batch):
        inputs, labels = list(raw.inputs), raw.labels
    else:
        given, labels = parted(raw, len(model.inputs), model.inputs)
        inputs = _ordered(given, model, where)
    if len(inputs) != len(model.inputs):
        raise DataError(
            f"{where} has {len(inputs)} input{'' if len(inputs) == 1 else 's'}; the model takes {len(model.inputs)}: "
            f"{', '.join(model.inputs)}{_number_hint(len(inputs), model, labels)}."
        )
    fitted = zip(inputs, model.example, model.inputs, strict=True)
    try:
        return Batch(tuple(_fitted(x, wanted, f"{where}, input '{name}'") for x, wanted, name in fitted), labels)
    except DataError as cause:
        if len(inputs) == 1 and isinstance(labels, Tensor) and _misfit(labels, model.example[0]) is None:
            said = str(cause).rstrip(".")
            raise DataError(f"{said}; the labels seem to come first: give (inputs, labels).") from cause
        raise


def tensor(value: Any, where: str) -> Tensor:
    """Numbers as a tensor on the CPU. Raises `DataError` for anything else."""
    if isinstance(value, Tensor) and value.device.type != "meta":
        return value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{where} is a masked array with {int(np.ma.count_masked(value))} values hidden; fill them in.")
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(_plain(value))
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise DataError(f"{where} is {kind}; expected a tensor or an array of numbers whose first axis is the batch.")


def _read(raws: Sequence[Any], model: Model | Taken) -> list[Batch] | None:
    """Raw batches as the model takes them; None where it cannot."""
    try:
        found = [part(raw, model, "") for raw in raws]
    except DataError:
        return None
    counts = [
        {len(x) for x in pytree.tree_leaves((b.inputs, b.labels)) if isinstance(x, Tensor) and x.ndim} for b in found
    ]
    return found if all(len(count) == 1 for count in counts) else None


def _flat(found: Sequence[Any]) -> bool:
    return all(isinstance(each, Tensor | np.ndarray) for each in found)


def _unlike(found: Sequence[Any]) -> bool:
    """Whether a tuple of two arrays can be no two batches, whatever the model."""
    return isinstance(found, tuple) and _flat(found) and len(found) == 2 and found[0].shape[1:] != found[1].shape[1:]


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _known(answer: Tensor) -> set[tuple[int, ...]]:
    """The shapes, without the items and axes of one, that labels of an output may have."""
    shape = answer.shape[1:]
    return {(), _bare(shape), _bare(shape[1:]), _bare(shape[:-1])}


def _number_hint(count: int, model: Model | Taken, labels: Labels) -> str:
    wants = len(model.inputs)
    if labels is None and count == wants + 2:
        return (
            "; of (inputs, labels, weights) give (inputs, labels), or, where a metric of your own reads the weights, "
            "(inputs, (labels, weights))"
        )
    return "" if count == wants else "; give ((first, second, ...), labels), the inputs as a tuple" if wants > 1 else ""


def _ordered(given: Any, model: Model | Taken, where: str) -> list[Any]:
    args, kwargs = model.arguments(model.example)
    if not isinstance(given, Mapping):
        return pytree.tree_leaves(given)
    if len(given) == len(model.inputs) == 1 and next(iter(given)) in (*INPUT_KEYS, *model.inputs):
        return list(given.values())
    if set(given) == set(model.inputs):
        return [given[name] for name in model.inputs]
    template: Any = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Mapping) else kwargs
    if args and template is kwargs:
        raise DataError(
            f"{where} names {_names(given)}; the model takes {', '.join(model.inputs)}: use these names"
            f"{' (or x)' if len(model.inputs) == 1 else ''}, and y for labels."
        )
    return _follow(template, given, where)


def _follow(template: Any, given: Any, where: str) -> list[Any]:
    """The leaves of `given` in the order of `template`."""
    if isinstance(template, Mapping) and isinstance(given, Mapping):
        if set(template) != set(given):
            raise DataError(f"{where} names {_names(given)}; the model takes {_names(template)}.")
        return [leaf for key in template for leaf in _follow(template[key], given[key], where)]
    if isinstance(template, list | tuple) and isinstance(given, list | tuple) and len(template) == len(given):
        return [leaf for t, g in zip(template, given, strict=True) for leaf in _follow(t, g, where)]
    return [given] if isinstance(template, Tensor) else pytree.tree_leaves(given)


def _fitted(value: Any, wanted: Tensor, where: str) -> Tensor:
    found = tensor(value, where)
    misfit = _misfit(found, wanted)
    if misfit is not None:
        raise DataError(f"{where} {misfit}.")
    fitted = found.to(wanted.dtype)
    if not fitted.is_floating_point() and not torch.equal(fitted.to(found.dtype), found):
        kind = str(wanted.dtype).removeprefix("torch.")
        odd = found[fitted.to(found.dtype) != found].flatten()[0]
        raise DataError(f"{where} holds {odd.item()}, which the type of the model's example, {kind}, cannot hold.")
    return fitted


def _misfit(found: Tensor, wanted: Tensor) -> str | None:
    """What keeps a tensor from being an input like `wanted`; None where nothing does."""
    seen, kind = str(found.dtype).removeprefix("torch."), str(wanted.dtype).removeprefix("torch.")
    if found.is_floating_point() != wanted.is_floating_point() or (found.dtype == torch.bool) != (
        wanted.dtype == torch.bool
    ):
        hint = "; scale it as in training, for example x.float() / 255" if seen == "uint8" else ""
        return f"is {seen}; the model's example is {kind}{hint}"
    if found.shape[1:] != wanted.shape[1:] or found.ndim != wanted.ndim:
        return (
            f"has the shape {tuple(found.shape)}; the model's example has (batch, "
            f"{', '.join(map(str, wanted.shape[1:]))}){_shape_hint(tuple(found.shape), tuple(wanted.shape))}"
        )
    return None


def _shape_hint(seen: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if seen == wanted[1:]:
        return "; the batch axis is missing: give batches of items, not items"
    if len(seen) == len(wanted) and sorted(seen[1:]) == sorted(wanted[1:]):
        return "; the axes seem to be in another order (permute them)"
    return ""


def _names(given: Any) -> str:
    return ", ".join(map(str, given)) if isinstance(given, Mapping) else f"a {type(given).__name__}"


def _labels(value: Any) -> Labels:
    if isinstance(value, Tensor):
        found = tensor(value, "Labels")
        return found.float() if found.dtype == torch.bfloat16 else found
    if isinstance(value, np.ndarray):
        return tensor(value, "Labels") if value.dtype.kind in "fiub" else value.tolist()
    if isinstance(value, Mapping):
        return {k: _labels(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_labels(v) for v in value)
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return torch.as_tensor(value)
    return value


def _plain(value: np.ndarray) -> np.ndarray:
    """The same numbers in a type that torch computes with: native byte order, at most 64 bits, signed beyond 8."""
    kind = value.dtype
    if kind.kind == "u" and kind.itemsize > 1:
        value = value.astype(np.int64)
    elif kind.kind == "f" and kind.itemsize > 8:
        value = value.astype(np.float64)
    return np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
