"""What changed between the original and the compressed model, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tersor.errors import DataError
from tersor.measuring.batches import Batch, Batches
from tersor.measuring.certainty import exact
from tersor.measuring.metrics import Predict, first, in_parts
from tersor.measuring.pictures import picture
from tersor.measuring.scores import log_softmax
from tersor.report import ClassChange, Example, Interval, Regression

_NUMBERS = 8
"""Values of an input that is no image which are shown."""


@dataclass(frozen=True)
class _Items:
    """One row per item: both outputs, flat; `labels` is None unless the data has one class per item."""

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray | None
    classes: bool


def compare(before: Predict, after: Predict, batches: Batches, worst: int = 8, seed: int = 0) -> Regression:
    """What changed from `before` to `after` on `batches`, with the `worst` examples.

    A first output of (items, at least 2 classes) is a classifier's, unless the labels are floats or of another shape.
    Then flips are counted against the labels, or against the original's decision where there are no labels.
    Memory: both models' outputs for all items.
    """
    items = _collect(before, after, batches)
    change = items.after - items.before
    power = float(np.square(items.before).sum())
    error = float(np.sqrt(np.square(change).sum() / power)) if power else float(np.sqrt(np.square(change).mean()))
    if not items.classes:
        loss = np.sqrt(np.square(change).mean(1))
        return Regression(len(change), error, worst=_examples(items, loss, batches, worst))
    was, now = items.before.argmax(1), items.after.argmax(1)
    label = was if items.labels is None else items.labels
    right, still = was == label, now == label
    log_p, log_q = log_softmax(items.before), log_softmax(items.after)
    loss = _margin(log_p, label) - _margin(log_q, label)
    # A decision that flipped is a worse example than any confidence that only faded.
    order = loss + 1e6 * (right & ~still) + 1e3 * ((was != now) & ~still)
    return Regression(
        items=len(change),
        error=error,
        agreement=float((was == now).mean()),
        divergence=float((np.exp(log_p) * (log_p - log_q)).sum(1).mean()),
        changed=int((was != now).sum()),
        gained=int((~right & still).sum()),
        lost=int((right & ~still).sum()),
        difference=paired_difference(right, still, seed),
        classes=_per_class(label, right, still) if items.labels is not None else (),
        worst=_examples(items, loss, batches, worst, order),
    )


def paired_difference(before: np.ndarray, after: np.ndarray, seed: int = 0, draws: int = 10_000) -> Interval:
    """Accuracy of `after` minus `before` (booleans, the same items), and the 95 % interval of a paired bootstrap.

    Where none was lost, or none gained, the exact interval of that bounds it instead.
    Resampling items of which each is a loss, a gain or neither is one multinomial draw of the three counts.
    """
    n = len(before)
    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    shares = np.array([gained, lost, n - gained - lost]) / n
    counts = np.random.default_rng(seed).multinomial(n, shares, draws)
    low, high = np.percentile((counts[:, 0] - counts[:, 1]) / n, [2.5, 97.5])
    unseen = exact(0, n).high  # what did not happen here may happen, which no resampling shows
    return Interval(
        float(low) if lost else min(float(low), -unseen),
        (gained - lost) / n,
        float(high) if gained else max(float(high), unseen),
    )


def _collect(before: Predict, after: Predict, batches: Batches) -> _Items:
    old: list[np.ndarray] = []
    new: list[np.ndarray] = []
    found: list[np.ndarray | None] = []
    for batch in batches:
        arrays = batch.arrays()
        old.append(in_parts(first(before(*arrays))))
        new.append(in_parts(first(after(*arrays))))
        found.append(_class_labels(batch))
        if old[-1].shape != new[-1].shape:
            raise DataError(f"The original gives {old[-1].shape} and the compressed model {new[-1].shape}.")
    if len({x.shape[1:] for x in old}) > 1:
        old, new, found = _per_item_means(old), _per_item_means(new), []
    labels = [x for x in found if x is not None]
    known = np.concatenate(labels) if len(labels) == len(old) else None
    unlabelled = all(
        b.labels is None or isinstance(b.labels, Mapping) for b in batches
    )  # by name: the original's outputs
    flat = [np.concatenate(x).reshape(len(batches), -1).astype(np.float64) for x in (old, new)]
    classes = old[0].ndim == 2 and flat[0].shape[1] > 1 and (unlabelled or known is not None)
    if known is not None and classes and (known.min() < 0 or known.max() >= flat[0].shape[1]):
        known, classes = None, False
    return _Items(flat[0], flat[1], known, classes)


def _class_labels(batch: Batch) -> np.ndarray | None:
    labels = batch.labels
    if isinstance(labels, list) and all(isinstance(x, int) for x in labels):
        return np.array(labels)
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.numel() != len(batch):
        return None
    return labels.detach().cpu().numpy().reshape(-1).astype(np.int64)


def _per_item_means(outputs: list[np.ndarray]) -> list[np.ndarray]:
    return [x.reshape(len(x), -1).mean(1, keepdims=True) for x in outputs]


def _margin(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    rows = np.arange(len(label))
    others = log_p.copy()
    others[rows, label] = -np.inf
    return log_p[rows, label] - others.max(1)


def _per_class(label: np.ndarray, right: np.ndarray, still: np.ndarray) -> tuple[ClassChange, ...]:
    return tuple(
        ClassChange(int(c), int((label == c).sum()), float(right[label == c].mean()), float(still[label == c].mean()))
        for c in np.unique(label)
    )


def _examples(
    items: _Items, loss: np.ndarray, batches: Batches, worst: int, order: np.ndarray | None = None
) -> tuple[Example, ...]:
    chosen = np.argsort(-(loss if order is None else order), kind="stable")[:worst]
    return tuple(_example(items, int(i), float(loss[i]), batches) for i in chosen if loss[i] > 0)


def _example(items: _Items, i: int, loss: float, batches: Batches) -> Example:
    value = _input(batches, i)
    shown = picture(value)
    numbers = () if shown else tuple(float(x) for x in value.ravel()[:_NUMBERS])
    label = None if items.labels is None else int(items.labels[i])
    before, after = (_said(x[i], items.classes) for x in (items.before, items.after))
    return Example(i, label, before, after, loss, shown, numbers)


def _input(batches: Batches, i: int) -> np.ndarray:
    for batch in batches:
        if i < len(batch):
            return batch.inputs[0][i].detach().cpu().numpy()
        i -= len(batch)
    raise IndexError(i)


def _said(output: np.ndarray, classes: bool) -> str:
    if not classes:
        return ", ".join(f"{x:.4g}" for x in output[:4]) + (", ..." if output.size > 4 else "")
    best = int(output.argmax())
    return f"class {best} ({100 * np.exp(log_softmax(output[None])[0, best]):.0f} %)"
