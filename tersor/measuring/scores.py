"""The built-in metrics: over the first output with labels, over every output where they compare with the original."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from tersor.errors import MetricError
from tersor.measuring.batches import Batches
from tersor.measuring.classes import probabilities, scored
from tersor.measuring.likeness import Alike, alike
from tersor.measuring.metrics import Metric, Predict, Score, first, labels_of

_NO_LOSS = 100.0
"""Decibels given to an item that equals its label exactly."""

_ALL_IGNORED = "The data holds no label that counts: all are ignored."


def built_in(name: str) -> Metric:
    """The metric called `name`; `lower:name` and `higher:name` set the direction. Raises `MetricError` if unknown."""
    direction, _, plain = name.rpartition(":")
    found = BUILT_IN.get(plain)
    if found is None:
        near = difflib.get_close_matches(plain, BUILT_IN, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise MetricError(f"There is no metric {plain!r}.{meant} Known: {', '.join(BUILT_IN)}; or file.py:function.")
    if direction not in ("", "lower", "higher") or (direction and direction != found.direction):
        raise MetricError(f"For the metric {plain}, {found.direction} is better; {direction!r} was asked for.")
    return found


def accuracy(predict: Predict, batches: Batches) -> float:
    """Share of labels that are the class with the highest score."""
    return _share(np.concatenate([b.scores.argmax(-1) == b.labels for b in scored(predict, batches, "accuracy")]))


def top5(predict: Predict, batches: Batches) -> float:
    """Share of labels among the five highest scores; of equal scores, the first class counts as higher."""
    hits = []
    for batch in scored(predict, batches, "top5"):
        scores, labels = batch.scores, batch.labels
        if scores.shape[1] <= 5:
            raise MetricError(f"top5 of {scores.shape[1]} classes is always 1; use accuracy.")
        own = np.take_along_axis(scores, labels[:, None], 1)
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        hits.append(((scores > own) | ((scores == own) & earlier)).sum(-1) < 5)
    return _share(np.concatenate(hits))


def f1(predict: Predict, batches: Batches) -> float:
    """Harmonic mean of precision and recall of each class, averaged over the classes that occur (macro F1)."""
    right, said, true = _confusion(predict, batches, "f1")
    seen = said + true > 0
    return float(np.mean(2 * right[seen] / (said + true)[seen]))


def iou(predict: Predict, batches: Batches) -> float:
    """Intersection over union of each class, averaged over the classes that occur (mean IoU of a segmentation)."""
    right, said, true = _confusion(predict, batches, "iou")
    union = said + true - right
    return float(np.mean(right[union > 0] / union[union > 0]))


def cross_entropy(predict: Predict, batches: Batches) -> float:
    """Mean of -log p(label), nats; p is the softmax of the scores, or the scores where they already sum to 1.

    Of labels that are distributions p' it is the mean of -sum p' log p.
    """
    return _mean_nll(predict, batches, "cross_entropy")


def perplexity(predict: Predict, batches: Batches) -> float:
    """exp of the mean cross-entropy per token."""
    return float(np.exp(min(_mean_nll(predict, batches, "perplexity"), 700.0)))


def agreement(predict: Predict, batches: Batches) -> Score:
    """Share of decisions (highest score) equal to the original's, of each output; of whole numbers the share of equal ones.

    Of several outputs, one that decides nothing, a number an item, is compared by its cosine.
    """
    found = alike(predict, batches, "agreement")
    if len(found) > 1:
        return {name: one.cosine if one.decisions is None else one.decisions for name, one in found.items()}
    (one,) = found.values()
    if one.decisions is None:
        raise MetricError(
            "agreement compares classes, and the output has none that can be recognized; use cosine or r2."
        )
    return one.decisions


def cosine(predict: Predict, batches: Batches) -> Score:
    """Mean over items of the cosine between output and label, both flattened.

    With the original in the labels' place: of each output, and of each channel that is far quieter than the others, the least
    counting; of whole numbers the share of equal ones.
    """
    if _compared(batches):
        return _each(alike(predict, batches, "cosine"), lambda one: one.cosine)
    return _labelled_cosine(predict, batches)


def _labelled_cosine(predict: Predict, batches: Batches) -> float:
    values = []
    for out, wanted in _pairs(predict, batches, "cosine"):
        a, b = _flat(out), _flat(wanted)
        norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(1)
        values.append(np.where(same, 1.0, (a * b).sum(1) / np.where(norm > 0, norm, 1.0)))
    return _share(np.concatenate(values))


def spearman(predict: Predict, batches: Batches) -> float:
    """Rank correlation between the cosine of two items' outputs and the score of their pair; labels (items, 2) are the number
    of the pair and its score, and an item whose partner is missing is left out. Where labels are outputs: the mean cosine.
    """
    from scipy.stats import rankdata

    vectors, labels = [], []
    for batch in batches:
        out, wanted = _flat(first(predict(*batch.arrays()))), labels_of(batch, "spearman")
        if wanted.shape == out.shape and out.shape[1] != 2:
            return _labelled_cosine(predict, batches)
        if wanted.shape != (len(out), 2):
            raise MetricError(
                f"spearman needs labels (pair, score) of each item; the labels have the shape {wanted.shape}."
            )
        vectors.append(out)
        labels.append(wanted.astype(np.float64))
    v, y = np.concatenate(vectors), np.concatenate(labels)
    order = np.argsort(y[:, 0], kind="stable")
    at = np.flatnonzero(np.diff(y[order, 0]) == 0)
    left, right = order[at], order[at + 1]
    norm = np.linalg.norm(v, axis=1)
    near = (v[left] * v[right]).sum(1) / np.maximum(norm[left] * norm[right], 1e-300)
    if len(at) < 3 or np.ptp(y[left, 1]) == 0:
        raise MetricError(f"spearman needs three pairs with scores that differ; {len(at)} whole pairs were found.")
    if np.ptp(near) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(near), rankdata(y[left, 1]))[0, 1])


def _of_pairs(predict: Predict, batches: Batches) -> Score:
    return cosine(predict, batches) if _compared(batches) else spearman(predict, batches)


def mse(predict: Predict, batches: Batches) -> float:
    """Mean squared error to the labels."""
    return _mean_error(predict, batches, "mse", 2)


def mae(predict: Predict, batches: Batches) -> float:
    """Mean absolute error to the labels."""
    return _mean_error(predict, batches, "mae", 1)


def r2(predict: Predict, batches: Batches) -> Score:
    """1 - squared error / variance of the labels, over all values; 1 is perfect.

    With the original in the labels' place: of each output, and of each channel that varies far less than the others, the least
    counting; of whole numbers the share of equal ones.
    """
    if _compared(batches):
        return _each(alike(predict, batches, "r2"), lambda one: one.r2)
    pairs = [(_flat(out), _flat(wanted)) for out, wanted in _pairs(predict, batches, "r2")]
    count = sum(w.size for _, w in pairs)
    mean = sum(w.sum() for _, w in pairs) / count
    spread = sum(((w - mean) ** 2).sum() for _, w in pairs)
    if spread == 0:
        raise MetricError("r2 needs labels that vary and all of them are equal; use mse.")
    return float(1 - sum(((o - w) ** 2).sum() for o, w in pairs) / spread)


def psnr(predict: Predict, batches: Batches) -> float:
    """Mean over items of 10 log10(peak^2 / mse), decibels; the peak is 1 for labels in [0, 1], else 255."""
    pairs = [(_flat(out), _flat(wanted)) for out, wanted in _pairs(predict, batches, "psnr")]
    top, low = max(w.max() for _, w in pairs), min(w.min() for _, w in pairs)
    if low < 0 or top > 255:
        raise MetricError(f"psnr needs labels in [0, 1] or [0, 255] and they lie in [{low:.4g}, {top:.4g}]; use mse.")
    peak = 1.0 if top <= 1 else 255.0
    errors = np.concatenate([((o - w) ** 2).mean(1) for o, w in pairs])
    with np.errstate(divide="ignore"):
        return float(np.minimum(10 * np.log10(peak**2 / errors), _NO_LOSS).mean())


BUILT_IN: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric("accuracy", accuracy, bounded=True),
        "top5": Metric("top5", top5, bounded=True),
        "f1": Metric("f1", f1, bounded=True),
        "iou": Metric("iou", iou, bounded=True),
        "agreement": Metric("agreement", agreement, bounded=True, original="labels"),
        "cosine": Metric("cosine", cosine, bounded=True, original="spare"),
        "spearman": Metric("spearman", _of_pairs, bounded=True, original="spare"),
        "r2": Metric("r2", r2, bounded=True, original="spare"),
        "cross_entropy": Metric("cross_entropy", cross_entropy, lower=True, bounded=False),
        "perplexity": Metric("perplexity", perplexity, lower=True, bounded=False),
        "mse": Metric("mse", mse, lower=True, bounded=False),
        "mae": Metric("mae", mae, lower=True, bounded=False),
        "psnr": Metric("psnr", psnr, bounded=False),
    }
)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """log p over the last axis, float64; p is softmax(scores), or the scores where all rows already sum to 1."""
    return list(_log_p(scores, probabilities(scores)))[-1]


def _log_p(scores: np.ndarray, probable: bool) -> Iterator[np.ndarray]:
    """log p, float64, where the rows are scores, then, where they may be, as of probabilities."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    yield shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    if probable:
        yield np.log(np.maximum(scores.astype(np.float64), 1e-12))


def _compared(batches: Batches) -> bool:
    """Whether the original's outputs, by name, are in the labels' place."""
    return all(isinstance(batch.labels, Mapping) for batch in batches)


def _each(found: Mapping[str, Alike], score: Callable[[Alike], float]) -> Score:
    """The score of every output by name; of an only one the number."""
    scores = {name: score(one) for name, one in found.items()}
    return scores if len(scores) > 1 else next(iter(scores.values()))


def _share(values: np.ndarray) -> float:
    if values.size == 0:
        raise MetricError(_ALL_IGNORED)
    return float(values.mean(dtype=np.float64))


def _confusion(predict: Predict, batches: Batches, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, said, true = (np.zeros(0) for _ in range(3))
    for batch in scored(predict, batches, name):
        scores, labels = batch.scores, batch.labels
        classes, guess = scores.shape[1], scores.argmax(-1)
        right, said, true = (x if x.size else np.zeros(classes) for x in (right, said, true))
        right = right + np.bincount(labels[guess == labels], minlength=classes)
        said = said + np.bincount(guess, minlength=classes)
        true = true + np.bincount(labels, minlength=classes)
    if not true.any():
        raise MetricError(_ALL_IGNORED)
    return right, said, true


def _mean_nll(predict: Predict, batches: Batches, name: str) -> float:
    losses: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # of scores, and of probabilities
    probable = True
    for batch in scored(predict, batches, name):
        probable = probable and (not batch.scores.size or probabilities(batch.scores))
        for found, log_p in zip(losses, _log_p(batch.scores, probable), strict=False):
            if batch.shares is None:
                found.append(-np.take_along_axis(log_p, batch.labels[:, None], 1).ravel())
            else:
                found.append(-(batch.shares * log_p).sum(1))
    return _share(np.concatenate(losses[probable]))


def _mean_error(predict: Predict, batches: Batches, name: str, power: int) -> float:
    total, count = 0.0, 0
    for out, wanted in _pairs(predict, batches, name):
        total += float((np.abs(_flat(out) - _flat(wanted)) ** power).sum())
        count += out.size
    return total / count


def _pairs(predict: Predict, batches: Batches, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for batch in batches:
        out, wanted = first(predict(*batch.arrays())), labels_of(batch, name)
        if [n for n in out.shape[1:] if n != 1] != [n for n in wanted.shape[1:] if n != 1]:
            turned = sorted(out.shape[1:]) == sorted(wanted.shape[1:])
            raise MetricError(
                f"{name} needs labels in the output's shape {out.shape}; the labels have {wanted.shape}"
                f"{', whose axes seem to be in another order (permute them)' if turned else ''}."
            )
        yield out, wanted.reshape(out.shape)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)
