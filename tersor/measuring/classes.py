"""Class scores and their labels: on which axis the classes lie, what is left out, and one score as two classes.

Scores are (items, classes), images (items, classes, height, width), as torch's `cross_entropy` takes them, or tokens
(items, tokens, classes). Labels are class numbers without that axis, or distributions with it. What fits in two ways is told
by the inputs; what fits in none is refused, because any other reading would give a score that means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from tersor.errors import MetricError
from tersor.loss import IGNORED, VOID
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Predict, first, labels_of

_WHOLE = 1e-2  # how far a distribution's sum may be from 1: of float16
_OVER = 0.02  # how far a grid may push a probability out of [0, 1]
_COLORS = (1, 3, 4)
_MANY = 4096  # classes of which no table of decisions is made


@dataclass(frozen=True)
class Scored:
    """Positions of a batch: `scores` (n, classes), `labels` (n,), and `shares` (n, classes) where labels are distributions."""

    scores: np.ndarray
    labels: np.ndarray
    shares: np.ndarray | None = None


def scored(predict: Predict, batches: Batches, name: str) -> Iterator[Scored]:
    """Scores and labels per batch, positions flattened, ignored labels left out.

    Raises `MetricError` where output and labels do not fit or labels are no classes, `DataError` where there are none.
    """
    found = _pairs(predict, batches, name)
    head = next(found)
    pairs = chain([head], found)
    if head[0].dtype.kind != "f" and head[0].shape == head[1].shape:
        yield from _decisions(pairs, name)
        return
    if _single(head[0], head[1]):
        yield from _two_classes(pairs, name)
        return
    alike = len({tuple(x.shape[1:] for x in batch.inputs) for batch in batches}) == 1
    axis, waiting = None, []
    for scores, labels, inputs in pairs:
        fits = _axes(scores, labels, inputs, name)
        told = fits[0] if len(fits) == 1 else class_axis(scores.shape, inputs) if alike else None
        axis = told if axis is None else axis
        if axis is not None and axis not in fits:
            raise MetricError(
                f"{name} found the classes on axis {axis} in one batch but not in another, whose output has the shape "
                f"{scores.shape}; give labels of one kind."
            )
        waiting.append((scores, labels, inputs))
        if axis is not None:
            yield from (_scored(z, y, axis, name) for z, y, _ in waiting)
            waiting = []
        elif alike:
            break
    if waiting:  # of no batch did the shapes tell
        scores, labels, inputs = waiting[0]
        axis = class_axis(scores.shape, inputs)
        if axis is None:
            raise MetricError(
                f"{name} cannot tell on which axis of the output {scores.shape} the classes lie: the labels {labels.shape} fit "
                "axis 1 as well as the last. Bring a metric of your own (file.py:function), or items of another length."
            )
        yield from (_scored(z, y, axis, name) for z, y, _ in waiting)


def class_axis(shape: Sequence[int], inputs: Sequence[np.ndarray]) -> int | None:
    """On which axis of an output its classes lie, told by what the model reads; None where that does not tell.

    Of what reads tokens it is the last. Else the other axes are those of the input: where they follow its channels, the
    classes are on axis 1, where they come before them, on the last. An image has axis 1, as torch has it.
    """
    last = len(shape) - 1
    if last == 1:
        return 1
    if all(x.dtype.kind != "f" and x.ndim < 3 for x in inputs):
        return last
    alike = [x.shape for x in inputs if x.ndim == len(shape)]
    ahead = any(tuple(x[2:]) == tuple(shape[2:]) for x in alike)
    behind = any(tuple(x[1:-1]) == tuple(shape[1:-1]) for x in alike)
    if ahead != behind:
        return 1 if ahead else last
    if last < 3 or not alike or any(x[-1] in _COLORS and x[1] not in _COLORS for x in alike):
        return None
    return 1


def decision_axis(shape: Sequence[int], inputs: Sequence[np.ndarray]) -> int | None:
    """Where the classes of an output lie that has no labels to tell: as `class_axis`, else axis 1 of maps and the last of
    sequences that an image or a vector gave. None where they can lie on either: of a sequence that a sequence of another
    length gave, or one that is as long as it is wide."""
    if len(shape) < 2:
        return None
    told = class_axis(shape, inputs)
    if told is not None or len(shape) > 3:
        return 1 if told is None else told
    return None if any(x.ndim == 3 for x in inputs) else 2


def distribution(labels: np.ndarray, axis: int) -> bool:
    """Whether labels are shares of classes: never below 0, and 1 in all."""
    values = labels.astype(np.float64)
    return bool((values >= -1e-6).all() and (np.abs(values.sum(axis) - 1) <= _WHOLE).all())


def probabilities(scores: np.ndarray) -> bool:
    """Whether rows of scores are probabilities of their classes, as far as low precision leaves them so."""
    if not scores.size or scores.min() < -_OVER:
        return False
    return bool((np.abs(scores.sum(-1, dtype=np.float64) - 1) <= _WHOLE).all())


def _pairs(
    predict: Predict, batches: Batches, name: str
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]]:
    for batch in batches:
        inputs = batch.arrays()
        scores, labels = first(predict(*inputs)), labels_of(batch, name)
        if labels.dtype.kind not in "fiub":
            raise MetricError(
                f"{name} needs class numbers and the labels are {_kind(labels)}; number the classes from 0."
            )
        yield scores, labels, inputs


def _kind(labels: np.ndarray) -> str:
    return (
        f"words such as {str(labels.ravel()[0])!r}" if labels.dtype.kind in "UO" and labels.size else str(labels.dtype)
    )


def _single(scores: np.ndarray, labels: np.ndarray) -> bool:
    """Whether there is one score an item or position, rather than one a class."""
    if scores.ndim == 1 or scores[0].size == 1:
        return True
    return 1 in (scores.shape[1], scores.shape[-1]) and _bare(scores.shape) == _bare(labels.shape)


def _axes(scores: np.ndarray, labels: np.ndarray, inputs: Sequence[np.ndarray], name: str) -> list[int]:
    """The axes on which classes can lie, by the shapes; an axis of one is no matter where nothing fits exactly."""
    shape = scores.shape
    able = [axis for axis in dict.fromkeys((1, len(shape) - 1)) if shape[axis] > 1]
    if labels.shape == shape and able:
        told = class_axis(shape, inputs)
        return [told] if told in able else [axis for axis in able if distribution(labels, axis)] or able
    rest = {axis: shape[:axis] + shape[axis + 1 :] for axis in able}
    fits = [axis for axis in able if rest[axis] == labels.shape]
    fits = fits or [axis for axis in able if _bare(rest[axis]) == _bare(labels.shape)]
    if not fits:
        raise MetricError(
            f"{name} needs scores of (items, classes, ...) and labels without the class axis; the output has the shape {shape} "
            f"and the labels {labels.shape}."
        )
    return fits


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def _scored(scores: np.ndarray, labels: np.ndarray, axis: int, name: str) -> Scored:
    """One batch, with its classes on `axis`."""
    flat = _rows(scores, axis)
    if labels.shape == scores.shape:
        if not distribution(labels, axis):
            other = next((a for a in (1, labels.ndim - 1) if a != axis and distribution(labels, a)), None)
            if other is not None:
                raise MetricError(
                    f"{name} found the classes of the labels {labels.shape} on axis {other}, where those of the output are on "
                    f"axis {axis}; permute the labels."
                )
            raise MetricError(_no_classes(labels, name))
        shares = _rows(labels, axis).astype(np.float64)
        return Scored(flat, shares.argmax(-1), shares)
    numbers = class_numbers(labels, flat.shape[1], name)
    kept = numbers != IGNORED
    return Scored(flat[kept], numbers[kept])


def class_numbers(labels: np.ndarray, classes: int, name: str) -> np.ndarray:
    """Labels as int64, flat, with IGNORED for what is left out. Raises `MetricError` where they are no classes."""
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        raise MetricError(_no_classes(labels, name))
    if labels.dtype.kind == "b" and classes > 2:
        raise MetricError(
            f"{name} found labels of True and False, but the model has {classes} classes; give class numbers."
        )
    numbers = labels.astype(np.int64).ravel()
    if labels.ndim > 1 and labels.shape[1:] != (1,) and 2 < classes <= VOID:
        numbers = np.where(numbers == VOID, IGNORED, numbers)
    _check_classes(numbers[numbers != IGNORED], classes, name)
    return numbers


def _check_classes(labels: np.ndarray, classes: int, name: str) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        odd = int(labels.min() if labels.min() < 0 else labels.max())
        from_one = labels.min() == 1 and labels.max() == classes
        hint = "they seem to count from 1: subtract 1" if from_one else f"give items to be ignored the label {IGNORED}"
        raise MetricError(f"{name} found the label {odd}, but the model has the classes 0 to {classes - 1}; {hint}.")


def _rows(values: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _decisions(pairs: Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]], name: str) -> Iterator[Scored]:
    """The decisions of a model that puts out no scores, as scores of 1 for what it said and 0 for the rest."""
    if name not in ("accuracy", "f1", "iou"):
        raise MetricError(f"{name} needs scores, but the model returns whole numbers; let it return its scores.")
    kept = [(said, labels) for said, labels, _ in pairs]
    largest = max(int(x.max()) for x in (*(said for said, _ in kept), *(y[y != VOID] for _, y in kept)) if x.size)
    classes = max(2, largest + 1)
    if classes > _MANY:
        raise MetricError(
            f"{name} needs scores of {classes} classes, but the model returns whole numbers; bring your own metric."
        )
    for said, labels in kept:
        numbers = class_numbers(labels, classes, name)
        counts = numbers != IGNORED
        decided = said.astype(np.int64).ravel()[counts]
        if decided.size and decided.min() < 0:
            raise MetricError(
                f"{name} needs classes, but the model returns whole numbers such as {decided.min()}; use cosine."
            )
        yield Scored(np.eye(classes, dtype=np.float32)[decided], numbers[counts])


def _two_classes(pairs: Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]], name: str) -> Iterator[Scored]:
    """One score z as the scores of two classes: (0, z) of a logit, (1 - z, z) where all are probabilities of class 1."""
    kept = [(scores, _flags(scores, labels, name)) for scores, labels, _ in pairs]
    low, high = min(z.min() for z, _ in kept), max(z.max() for z, _ in kept)
    probable = low >= -_OVER and high <= 1 + _OVER
    for scores, flags in kept:
        z = scores.ravel()
        p = z.clip(0, 1)
        counts = flags != IGNORED
        yield Scored(np.stack([1 - p, p] if probable else [np.zeros_like(z), z], 1)[counts], flags[counts])


def _flags(scores: np.ndarray, labels: np.ndarray, name: str) -> np.ndarray:
    """Labels of one score: 0, 1 or IGNORED, flat."""
    if _bare(scores.shape) != _bare(labels.shape):
        raise MetricError(
            f"{name} needs at least two classes, or one score and labels of 0 and 1 in its shape; the output has the shape "
            f"{scores.shape} and the labels {labels.shape}."
        )
    odd = labels[~np.isin(labels, (0, 1, IGNORED))]
    if odd.size:
        raise MetricError(
            f"{name} needs classes, but the model gives one number per item and labels such as {odd.ravel()[0]:.6g} are "
            "neither 0 nor 1; for regression choose r2, mse or mae, for two classes label them 0 and 1."
        )
    return labels.astype(np.int64).ravel()


def _no_classes(labels: np.ndarray, name: str) -> str:
    if not np.isfinite(labels).all():
        return f"{name} found NaN or Inf among the labels {labels.shape}; repair them."
    if np.isin(labels, (0, 1)).all():
        what = f"{name} found labels {labels.shape} of 0 and 1 with several or no ones per item, which are no classes"
    else:
        what = f"{name} found labels {labels.shape} of real numbers, which are neither class numbers nor shares that sum to 1"
    return f"{what}; choose r2 or mse, or bring a metric of your own (file.py:function)."
