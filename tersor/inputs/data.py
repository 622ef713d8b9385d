"""Data as users bring it: a function that returns batches, an `.npz`, or Python objects; what comes out is `Batches`.

A batch is the inputs alone or (inputs, labels); inputs are one tensor or array, a tuple of them, or a dict by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import DataError, DataWarning
from tersor.graph.model import Model
from tersor.inputs import arrays, functions
from tersor.inputs.models import Brought
from tersor.measuring.batches import Batch, Batches, Labels

_INPUT_KEYS = ("x", "inputs", "images", "input")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target")
_HUGE = 1e18
_APART, _FEW = 30, 0.1  # times the usual size, and the share of items, that look like mistakes
_EVALUATION = 200  # items: fewer cannot tell a drop of 0.5 % from chance


@dataclass(frozen=True)
class Source:
    """Data read into memory, not yet fitted to a model. `whole` says that `raw[0]` holds all items at once."""

    name: str
    raw: tuple[Any, ...]
    whole: bool = False


@dataclass(frozen=True)
class Taken:
    """What takes the data, where there is no `Model`: flat inputs by name, and an example of them."""

    inputs: tuple[str, ...]
    example: tuple[Tensor, ...]

    def arguments(self, flat: Sequence[Tensor]) -> tuple[tuple, dict]:
        """The flat inputs as (args, kwargs): all by position."""
        return tuple(flat), {}


def bring(data: Any, what: str = "DATA") -> Source:
    """Read the data that `data` names or is.

    A string is `path/to/file.py:function`, `package.module:function` or `path/to/arrays.npz`. In Python also an
    iterable of batches, a function that returns one, `Batches`, an array, (inputs, labels) arrays or a dict of arrays.
    Raises `DataError` where it is missing, empty, or more than fits into half of the free memory.
    """
    if isinstance(data, str | Path):
        name = str(data)
        if name.endswith(".npz"):
            return Source(name, (arrays.read(Path(name)),), whole=True)
        function = functions.named(name, what, DataError)
        return _read(functions.called(function, f"{what} '{name}'", DataError), name, f"{what} '{name}'")
    name = functions.origin(data)
    if callable(data) and not isinstance(data, Iterable):
        data = functions.called(data, f"{what} {name}", DataError)
    return _read(data, name, f"{what} {name}")


def example(source: Source, brought: Brought) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first batch as the model's (args, kwargs), at most two items, for a model that came without an example."""
    raw = source.raw[0]
    if isinstance(raw, Batch):
        return tuple(t[:2] for t in raw.inputs), {}
    inputs, _ = _parted(raw, brought.wants)
    named = isinstance(inputs, Mapping)
    if named and brought.wants <= 1 and len(inputs) == 1 and next(iter(inputs)) in _INPUT_KEYS:
        inputs, named = tuple(inputs.values()), False
    taken = pytree.tree_map(lambda t: _first_two(t, source.name), inputs)
    if named:
        return (), dict(taken)
    return (tuple(taken) if isinstance(taken, list | tuple) else (taken,)), {}


def batches(source: Source, model: Model | Taken, labels: bool = False) -> Batches:
    """The data as the model takes it: flat inputs in the order of `model.inputs`, checked.

    labels: whether every batch must have labels. Raises `DataError` where the data is empty, has other shapes or types
    than the model's example, holds NaN, Inf or values whose square overflows, or is constant.
    """
    parts = tuple(_part(raw, model, f"batch {i} of {source.name}") for i, raw in enumerate(source.raw))
    for i, part in enumerate(parts):
        _check_values(part, model, source.name, i, source.whole)
    found = Batches(parts)
    _check_labels(found, source.name, labels)
    _check_constant(found, source.name)
    _warn_of_outliers(found, model, source.name)
    return found.rebatch(64) if source.whole else found


def split(whole: Batches, seed: int = 0, fraction: float = 0.2) -> tuple[Batches, Batches]:
    """(calibration, evaluation): disjoint, seeded, `fraction` for evaluation but at least 200 items, at most half."""
    count = min(max(round(len(whole) * fraction), _EVALUATION), len(whole) // 2)
    return whole.split(count / len(whole), seed)


def _read(found: Any, name: str, where: str) -> Source:
    if isinstance(found, Batches):
        return Source(name, tuple(found))
    if isinstance(found, Mapping | Tensor | np.ndarray) or _is_pair(found):
        return Source(name, (found,), whole=True)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes):
        raise DataError(
            f"{where} gave a {type(found).__name__}; wanted an iterable of batches (inputs, or (inputs, labels))."
        )
    raw = functions.called(lambda: _collect(found, where), where, DataError)
    if not raw:
        raise DataError(f"{where} gave no batches; give at least one batch of items.")
    return Source(name, raw)


def _collect(found: Iterable[Any], where: str) -> tuple[Any, ...]:
    kept: list[Any] = []
    room = arrays.memory() // 2
    for raw in found:
        # copied, because loaders reuse their buffers
        copied = pytree.tree_map(_copied, raw)
        room -= sum(leaf.nbytes for leaf in pytree.tree_leaves(copied) if isinstance(leaf, Tensor | np.ndarray))
        if room < 0:
            raise DataError(f"{where}: {len(kept)} batches fill half of the free memory; give fewer batches.")
        kept.append(copied)
    return tuple(kept)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().to("cpu", copy=True)
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _is_pair(found: Any) -> bool:
    arrays_ = isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, Tensor | np.ndarray) for x in found)
    return arrays_ and found[0].ndim > 0 and found[1].ndim > 0 and found[0].shape[1:] != found[1].shape[1:]


def _parted(raw: Any, wants: int) -> tuple[Any, Labels]:
    """(inputs, labels) of a raw batch, for a model that requires `wants` inputs."""
    if isinstance(raw, Mapping):
        key = next((k for k in _LABEL_KEYS if k in raw and len(raw) > 1), None)
        return {k: v for k, v in raw.items() if k != key}, _labels(raw[key]) if key else None
    if not isinstance(raw, list | tuple):
        return raw, None
    nested = len(raw) == 2 and isinstance(raw[0], list | tuple | Mapping)
    if nested or (len(raw) > 1 and len(raw) == max(wants, 1) + 1):
        rest = raw[0] if nested or len(raw) == 2 else tuple(raw[:-1])
        return rest, _labels(raw[-1])
    return raw, None


def _part(raw: Any, model: Model | Taken, where: str) -> Batch:
    if isinstance(raw, Batch):
        inputs, labels = list(raw.inputs), raw.labels
    else:
        given, labels = _parted(raw, len(model.inputs))
        inputs = _ordered(given, model, where)
    if len(inputs) != len(model.inputs):
        raise DataError(
            f"{where} has {len(inputs)} inputs; the model takes {len(model.inputs)}: {', '.join(model.inputs)}."
        )
    fitted = zip(inputs, model.example, model.inputs, strict=True)
    return Batch(tuple(_fitted(x, wanted, f"{where}, input '{name}'") for x, wanted, name in fitted), labels)


def _ordered(given: Any, model: Model | Taken, where: str) -> list[Any]:
    args, kwargs = model.arguments(model.example)
    if not isinstance(given, Mapping):
        return pytree.tree_leaves(given)
    if len(given) == len(model.inputs) == 1 and next(iter(given)) in (*_INPUT_KEYS, *model.inputs):
        return list(given.values())
    if set(given) == set(model.inputs):
        return [given[name] for name in model.inputs]
    template: Any = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Mapping) else kwargs
    if args and template is kwargs:
        raise DataError(f"{where} names {_names(given)}; the model takes {', '.join(model.inputs)}.")
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
    tensor = _tensor(value, where)
    seen, kind = str(tensor.dtype).removeprefix("torch."), str(wanted.dtype).removeprefix("torch.")
    if tensor.is_floating_point() != wanted.is_floating_point() or (tensor.dtype == torch.bool) != (
        wanted.dtype == torch.bool
    ):
        hint = "; scale it as in training, for example x.float() / 255" if seen == "uint8" else ""
        raise DataError(f"{where} is {seen}; the model's example is {kind}{hint}.")
    if tensor.shape[1:] != wanted.shape[1:] or tensor.ndim != wanted.ndim:
        raise DataError(
            f"{where} has the shape {tuple(tensor.shape)}; the model's example has (batch, "
            f"{', '.join(map(str, wanted.shape[1:]))}){_shape_hint(tuple(tensor.shape), tuple(wanted.shape))}."
        )
    return tensor.to(wanted.dtype)


def _shape_hint(seen: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if seen == wanted[1:]:
        return "; the batch axis is missing: give batches of items, not items"
    if len(seen) == len(wanted) and sorted(seen[1:]) == sorted(wanted[1:]):
        return "; the axes seem to be in another order (permute them)"
    return ""


def _names(given: Any) -> str:
    return ", ".join(map(str, given)) if isinstance(given, Mapping) else f"a {type(given).__name__}"


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise DataError(f"{where} is a {kind}; wanted a tensor or an array of numbers, first axis the batch.")


def _labels(value: Any) -> Labels:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "fiub" else value.tolist()
    if isinstance(value, Mapping):
        return {k: _labels(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_labels(v) for v in value)
    if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        return torch.as_tensor(value)
    return value


def _first_two(value: Any, where: str) -> Tensor:
    tensor = _tensor(value, f"The first batch of {where}")
    return tensor[:2] if tensor.ndim else tensor


def _check_values(part: Batch, model: Model | Taken, name: str, number: int, whole: bool) -> None:
    for tensor, called in zip(part.inputs, model.inputs, strict=True):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        bad, kind = ~torch.isfinite(tensor), "NaN or Inf"
        if not bool(bad.any()):
            bad, kind = tensor.abs() > _HUGE, f"values above {_HUGE:g}, whose square overflows"
        if bool(bad.any()):
            items = bad.reshape(len(tensor), -1).any(1).nonzero().flatten()
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
    for place in range(len(found.parts[0].inputs)):
        odd |= _outliers(found, place)
    if not bool(odd.any()):
        return found
    masks = odd.split([len(part) for part in found.parts])
    return Batches(tuple(part.pick(~mask) for part, mask in zip(found.parts, masks, strict=True)))


def _outliers(found: Batches, place: int) -> Tensor:
    """bool (items,): whose values of this input reach _APART times as far as a usual item's; none where they are many."""
    parts = [batch.inputs[place] for batch in found]
    nobody = torch.zeros(len(found), dtype=torch.bool)
    if not parts[0].is_floating_point() or not parts[0][0].numel():
        return nobody
    sizes = torch.cat([x.reshape(len(x), -1).abs().amax(1) for x in parts])
    odd = sizes > _APART * sizes.median()
    return odd if sizes.median() > 0 and int(odd.sum()) <= _FEW * len(sizes) else nobody


def _warn_of_outliers(found: Batches, model: Model | Taken, name: str) -> None:
    for place, called in enumerate(model.inputs):
        apart = _outliers(found, place).nonzero().flatten()
        if len(apart):
            warnings.warn(
                f"{len(apart)} of {len(found)} items of {name} hold values of '{called}' more than {_APART} times as large as "
                f"those of a usual item, the first is item {int(apart[0])}. They are not calibrated on; where they are "
                "mistakes, remove them.",
                DataWarning,
                stacklevel=3,
            )


def _check_constant(found: Batches, name: str) -> None:
    """Refuse data in which nothing varies; one of several inputs may well be constant."""
    columns = list(zip(*(b.inputs for b in found), strict=True))
    if len(found) * sum(column[0][0].numel() for column in columns) < 2:
        return
    values = [column[0].flatten()[0] for column in columns if column[0].numel()]
    filled = [column for column in columns if column[0].numel()]
    if all(bool((t == value).all()) for column, value in zip(filled, values, strict=True) for t in column):
        shown = ", ".join(f"{float(value):g}" for value in values)
        raise DataError(f"All {len(found)} items of {name} hold nothing but {shown}; give real data.")
