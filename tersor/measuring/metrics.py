"""What a metric is, what its drop is, and how a model is called by one.

A metric is called as `metric(predict, batches)` and gives a number, or a number by name. `predict(*inputs)` takes
arrays (or tensors) and returns what the model does: an array, a tuple of arrays, or arrays by output name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.errors import DataError, MetricError, TersorError
from tersor.maths.bits import as_array
from tersor.measuring.batches import Batch, Batches, Later
from tersor.shelf import Shelf

Outputs = np.ndarray | tuple[np.ndarray, ...] | Mapping[str, np.ndarray]
Predict = Callable[..., Outputs]
Score = float | dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A named score. `lower` says that less is better.

    bounded: True where scores lie in [0, 1] (or are shares, such as a cosine), so that a drop is in absolute points;
        False where a drop is relative; None decides by the values seen.
    original: what the original model's outputs are for: "unused", "labels" (they always take the labels' place) or
        "spare" (they do where the data has no labels that are real values).
    own: whether it is a function of the user's, of which nobody knows at which outputs it looks; it is called with copies of
        the data, which it may change.
    """

    name: str
    function: Callable[[Predict, Batches], Score]
    lower: bool = False
    bounded: bool | None = None
    original: str = "unused"
    own: bool = False

    @property
    def direction(self) -> str:
        return "lower" if self.lower else "higher"

    def __call__(self, predict: Predict, batches: Batches) -> Score:
        """The score. Raises `MetricError` where the function raises or gives anything but finite numbers."""
        try:
            score = self.function(predict, batches.copied() if self.own else batches)
        except TersorError:
            raise
        except Exception as cause:
            raise MetricError(f"The metric {self.name} raised {type(cause).__name__}: {cause}.") from cause
        if isinstance(score, Mapping):
            if not score:
                raise MetricError(f"The metric {self.name} returned an empty dict; it must hold at least one number.")
            return {str(key): self._number(value, f"[{key!r}]") for key, value in score.items()}
        return self._number(score, "")

    def _number(self, value: Any, entry: str) -> float:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise MetricError(
                f"The metric {self.name}{entry} returned {type(value).__name__}; "
                "it must return a number, or a dict of numbers."
            )
        if not math.isfinite(float(value)):
            raise MetricError(f"The metric {self.name}{entry} is {float(value)}; a score must be finite.")
        return float(value)


def from_function(name: str, function: Callable[[Predict, Batches], Score], lower: bool | None = None) -> Metric:
    """A user's function as a metric; its own `direction` ("higher" or "lower") counts where `lower` is None."""
    direction = getattr(function, "direction", "higher")
    if direction not in ("higher", "lower"):
        raise MetricError(f'The metric {name} has the direction {direction!r}; it must be "higher" or "lower".')
    return Metric(name, function, direction == "lower" if lower is None else lower, own=True)


def prepared(metric: Metric, batches: Batches, original: Predict) -> Batches:
    """The batches on which to call `metric`: with the original's outputs for labels, where the metric wants them. Raises
    `DataError` where they would take the place of several real-valued labels, which are meant to be predicted."""
    several = (leaf for b in batches if isinstance(b.labels, tuple | Mapping) for leaf in pytree.tree_leaves(b.labels))
    if metric.original == "spare" and any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in several):
        raise DataError(
            f"The metric {metric.name} needs one tensor of labels; several were given, some of them real numbers. Bring a "
            "metric of your own, or leave the labels out: then every output is compared with the original's."
        )
    return reference(original, batches) if compares(metric, batches) else batches


def compares(metric: Metric, batches: Batches) -> bool:
    """Whether `metric` compares with the original's outputs, with every one of them, on these batches."""
    values = all(isinstance(b.labels, torch.Tensor) and b.labels.is_floating_point() for b in batches)
    return metric.original == "labels" or (metric.original == "spare" and not values)


def reference(original: Predict, batches: Batches) -> Batches:
    """The batches with the original's outputs by name for labels; the name of an only one is "". Where they are many, such as
    those of images, they lie on disk."""
    kept: Shelf[torch.Tensor] = Shelf()
    parts: list[Batch] = []
    for part in batches:
        places = []
        for name, out in named(original(*part.arrays())).items():
            places.append((name, f"{len(parts)}/{name}"))
            kept[places[-1][1]] = torch.from_numpy(np.array(out))
        make = partial(_told, part, kept, tuple(places))
        parts.append(Later(make, make()) if kept.on_disk else make())
    return Batches(tuple(parts))


def _told(part: Batch, kept: Mapping[str, torch.Tensor], places: Sequence[tuple[str, str]]) -> Batch:
    return part.labelled({name: kept[place] for name, place in places})


def predictor(run: Callable[..., tuple[np.ndarray, ...]], outputs: tuple[str, ...]) -> Predict:
    """`predict` for a metric, from flat outputs with the names that `Model` gave them."""

    def predict(*inputs: Any) -> Outputs:
        deadline.check()  # a metric calls it once a batch
        flat = run(*(as_array(x) if isinstance(x, torch.Tensor) else np.asarray(x) for x in inputs))
        return structured(tuple(np.asarray(x) for x in flat), outputs)

    return predict


def structured(flat: tuple[np.ndarray, ...], names: tuple[str, ...]) -> Outputs:
    """Flat outputs as the model returns them: "output" alone is an array, "output_0", ... a tuple, else a dict."""
    if names == ("output",):
        return flat[0]
    if names == tuple(f"output_{i}" for i in range(len(names))):
        return flat
    return dict(zip(names, flat, strict=True))


def first(outputs: Any) -> np.ndarray:
    """The first output of a model. Raises `MetricError` where it holds NaN."""
    if isinstance(outputs, Mapping):
        outputs = next(iter(outputs.values()))
    while isinstance(outputs, tuple | list):
        outputs = outputs[0]
    return _checked(outputs)


def named(outputs: Any) -> dict[str, np.ndarray]:
    """All outputs of a model by name; the name of an only one is "". Raises `MetricError` where one holds NaN."""
    if isinstance(outputs, Mapping):
        return {str(name): _checked(out) for name, out in outputs.items()}
    if isinstance(outputs, tuple | list):
        return {f"output_{i}": _checked(out) for i, out in enumerate(outputs)}
    return {"": _checked(outputs)}


def _checked(outputs: Any) -> np.ndarray:
    array = as_array(outputs) if isinstance(outputs, torch.Tensor) else np.asarray(outputs)
    if array.dtype.kind in "fc" and np.isnan(array).any():
        items = int(np.isnan(array.reshape(len(array), -1)).any(1).sum())
        raise MetricError(f"The model's output is NaN for {items} of {len(array)} items of a batch; check the model.")
    return array


def in_parts(array: np.ndarray) -> np.ndarray:
    """Complex numbers as their real parts beside their imaginary ones, on the last axis; real numbers as they are."""
    if array.dtype.kind != "c":
        return array
    whole = array[:, None] if array.ndim == 1 else array
    return np.concatenate([whole.real, whole.imag], -1)


def labels_of(batch: Batch, name: str) -> np.ndarray:
    """The labels as an array. Raises `DataError` where the data has none."""
    if batch.labels is None:
        raise DataError(
            f"The metric {name} needs labels and the data has none; give (inputs, labels), or use agreement, cosine or r2, "
            "which compare with the original model."
        )
    if isinstance(batch.labels, tuple | Mapping):
        raise DataError(f"The metric {name} needs one tensor of labels; several were given. Bring your own metric.")
    if isinstance(batch.labels, torch.Tensor):
        return as_array(batch.labels)
    try:
        return np.asarray(batch.labels)
    except ValueError as cause:
        raise DataError(
            f"The metric {name} needs labels of one shape; items have other shapes. Bring your own metric."
        ) from cause


@dataclass(frozen=True)
class Drop:
    """How much worse a score became: `amount` > 0 is worse, in points of [0, 1], or relative to the reference."""

    amount: float
    relative: bool
    text: str
    entry: str = ""

    def within(self, limit: float) -> bool:
        """Whether the drop keeps a budget; a rounding error of float32 does not break it."""
        return self.amount <= limit + 1e-9


def drop(before: Score, after: Score, metric: Metric) -> Drop:
    """How much worse `after` is than `before`; of a dict, the entry that lost most: each must hold the budget."""
    if isinstance(before, dict) != isinstance(after, dict):
        raise MetricError(f"The metric {metric.name} returned a dict for one model and a number for the other.")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return _drop(before, after, metric, "")  # type: ignore[arg-type]
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise MetricError(f"The metric {metric.name} returned {odd} for only one of the two models.")
    return max((_drop(before[k], after[k], metric, k) for k in before), key=lambda d: d.amount)


def _drop(before: float, after: float, metric: Metric, entry: str) -> Drop:
    worse = after - before if metric.lower else before - after
    name = f"{metric.name}[{entry}]" if entry else metric.name
    bounded = metric.bounded
    if bounded is None:
        bounded = 0 <= before <= 1 and 0 <= after <= 1
    verb = "worse" if worse > 0 else "better"
    change = f"{name} {before:.6g} -> {after:.6g}"
    if worse == 0 or (bounded and abs(worse) <= 1e-9):
        return Drop(worse, not bounded, f"{change} (unchanged)", entry)
    if bounded:
        return Drop(worse, False, f"{change} ({_hundredths(100 * worse)} points {verb}, absolute)", entry)
    if not before:
        amount = math.copysign(math.inf, worse) if worse else 0.0
        told = f"{abs(worse):.3g} {verb}; of 0 there is no percentage" if worse else "unchanged"
        return Drop(amount, True, f"{change} ({told})", entry)
    amount = worse / abs(before)
    return Drop(amount, True, f"{change} ({_hundredths(100 * amount)} % {verb}, relative)", entry)


def _hundredths(value: float) -> str:
    """The size of a change, with two digits; of what they do not show, that."""
    return f"{abs(value):.2f}" if abs(value) >= 0.005 else "less than 0.01"
