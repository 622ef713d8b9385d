"""How like the original's outputs those of another model are: of every output, and of its quiet channels alone.

A mean over all values says nothing of a channel whose values are a thousandth of the others', nor of an output that nobody
looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tersor.errors import MetricError
from tersor.measuring.batches import Batches
from tersor.measuring.classes import decision_axis
from tersor.measuring.metrics import Predict, in_parts, labels_of, named
from tersor.report import Watched

QUIET = 0.1
"""Times the loudest channel, below which a channel is looked at alone."""

_ROUNDING = 1e-5
"""Times the loudest channel, below which there is nothing to look at."""


class Alike:
    """One output of two models, batch by batch. Memory: a number an item and six a channel.

    Channels are where classes would be: on axis 1 of (items, channels) and of maps, on the last of sequences.
    """

    def __init__(self, name: str):
        self.name = name
        self.whole = False  # whole numbers or flags, which are equal or are not
        self._same = self._all = 0  # decisions, or whole numbers
        self._cosines: list[np.ndarray] = []
        self._values: _Channels | None = None  # all of them as one channel
        self._channels: _Channels | None = None  # none, too, where batches have channels of other numbers

    def add(self, out: np.ndarray, wanted: np.ndarray, inputs: Sequence[np.ndarray]) -> None:
        """What the two models gave for one batch; `wanted` is the original's."""
        if out.shape != wanted.shape:
            raise MetricError(f"{self} has the shape {out.shape}, where the original's has {wanted.shape}.")
        self.whole = wanted.dtype.kind not in "fc"
        if self.whole:
            self._count(out == wanted)
            return
        axis = decision_axis(wanted.shape, inputs)
        if axis is not None and wanted.shape[axis] > 1 and wanted.dtype.kind == "f":
            self._count(out.argmax(axis) == wanted.argmax(axis))
        out, wanted = in_parts(out), in_parts(wanted)
        self._cosines.append(_item_cosines(out, wanted))
        rows = [_rows(x, axis) for x in (out, wanted)]
        if self._values is None:
            self._values, self._channels = _Channels(rows[1].reshape(-1, 1)), _Channels(rows[1])
        self._values.add(*(x.reshape(-1, 1) for x in rows))
        if self._channels is not None and rows[0].shape[1] == self._channels.width:
            self._channels.add(*rows)
        else:
            self._channels = None

    def __str__(self) -> str:
        return f"The output '{self.name}'" if self.name else "The output"

    @property
    def decisions(self) -> float | None:
        """Share of equal decisions (the largest value), or of equal whole numbers; None where there is nothing to decide."""
        return self._same / self._all if self._all else None

    @property
    def cosine(self) -> float:
        """Mean cosine of an item, or that of the worst quiet channel, if it is less; of whole numbers the share of equal."""
        if self._values is None:
            return self._same / self._all
        items = np.concatenate(self._cosines)
        one_number = len(items) == self._values.count  # whose cosine is no more than its sign
        usual = float(self._values.cosines[0] if one_number else items.mean(dtype=np.float64))
        return min(usual, (self.quietest or (0, usual))[1])

    @property
    def quietest(self) -> tuple[int, float] | None:
        """The quiet channel of the least cosine, and that; None where no channel is quiet."""
        if self._channels is None:
            return None
        cosines = self._channels.cosines
        return min(((c, float(cosines[c])) for c in self._channels.quiet), key=lambda found: found[1], default=None)

    @property
    def r2(self) -> float:
        """1 - squared error / variance, over all values or of the worst quiet channel, if it is less; of whole numbers the
        share of equal."""
        if self._values is None:
            return self._same / self._all
        (total,) = self._values.r2
        if np.isnan(total):
            raise MetricError(f"r2 needs outputs that vary; {self} is the same everywhere: use cosine.")
        found = self._channels
        return min([float(total)] if found is None else [float(total), *(float(found.r2[c]) for c in found.faint)])

    def _count(self, same: np.ndarray) -> None:
        self._same += int(same.sum())
        self._all += same.size


class _Channels:
    """Sums by channel over (positions, channels), of values less the first batch's means, so that nothing cancels."""

    def __init__(self, first: np.ndarray):
        self._shift = first.mean(0)
        self.count = 0
        self._sums = np.zeros((6, first.shape[1]))  # a, b, aa, bb, ab, (a - b)^2

    @property
    def width(self) -> int:
        return len(self._shift)

    def add(self, out: np.ndarray, wanted: np.ndarray) -> None:
        a, b = out - self._shift, wanted - self._shift
        self.count += len(a)
        self._sums += np.stack([x.sum(0) for x in (a, b, a * a, b * b, a * b, (a - b) ** 2)])

    @property
    def cosines(self) -> np.ndarray:
        """Of each channel over all items and positions; 1 where it is the same, 0 where one of the two is nothing."""
        a, b, aa, bb, ab, error = self._sums
        n, s = self.count, self._shift
        aa, bb, ab = aa + 2 * s * a + n * s * s, bb + 2 * s * b + n * s * s, ab + s * (a + b) + n * s * s
        norm = np.sqrt(np.maximum(aa, 0) * np.maximum(bb, 0))
        return np.where(error == 0, 1.0, ab / np.where(norm > 0, norm, np.inf))

    @property
    def quiet(self) -> list[int]:
        """Channels whose values are far smaller than those of the loudest."""
        _, b, _, bb, _, _ = self._sums
        return _small(np.maximum(bb + 2 * self._shift * b + self.count * self._shift**2, 0))

    @property
    def faint(self) -> list[int]:
        """Channels whose values vary far less than those of the one that varies most."""
        _, b, _, bb, _, _ = self._sums
        return _small(np.maximum(bb - b * b / self.count, 0))

    @property
    def r2(self) -> np.ndarray:
        """1 - squared error / variance of each channel; NaN where it does not vary."""
        _, b, _, bb, _, error = self._sums
        spread = np.maximum(bb - b * b / self.count, 0)
        return np.where(spread > 0, 1 - error / np.where(spread > 0, spread, 1.0), np.nan)


def alike(predict: Predict, batches: Batches, name: str) -> dict[str, Alike]:
    """Each output of `predict`, compared with the original's in the labels (by output name, or of the first alone)."""
    found: dict[str, Alike] = {}
    for batch in batches:
        inputs = batch.arrays()
        outputs = named(predict(*inputs))
        if isinstance(batch.labels, Mapping):
            wanted = {key: np.asarray(value) for key, value in batch.labels.items()}
        else:
            wanted = {next(iter(outputs)): labels_of(batch, name)}
        if len(batch.labels if isinstance(batch.labels, Mapping) else outputs) != len(outputs):
            raise MetricError(
                f"{name} compares with the original, which has the outputs {', '.join(wanted)}; here there are "
                f"{', '.join(outputs)}."
            )
        for (key, value), out in zip(wanted.items(), outputs.values(), strict=False):
            found.setdefault(key, Alike(key)).add(out, value, inputs)
    return found


def watch(before: Predict, after: Predict, batches: Batches, judged: bool | None) -> tuple[Watched, ...]:
    """What became of every output from `before` to `after`; `judged` says whether the metric looks beyond the first one,
    None where nobody knows."""
    found: dict[str, Alike] = {}
    for batch in batches:
        inputs = batch.arrays()
        new = named(after(*inputs)).values()
        for (key, wanted), out in zip(named(before(*inputs)).items(), new, strict=True):
            found.setdefault(key, Alike(key)).add(out, wanted, inputs)
    return tuple(
        _watched(one, True if i == 0 and judged is not None else judged) for i, one in enumerate(found.values())
    )


def _watched(one: Alike, judged: bool | None) -> Watched:
    channel, cosine = one.quietest or (None, None)
    return Watched(one.name, judged, "share of equal values" if one.whole else "cosine", one.cosine, channel, cosine)


def _small(power: np.ndarray) -> list[int]:
    loudest = power.max(initial=0.0)
    return [int(c) for c in np.flatnonzero((power < QUIET**2 * loudest) & (power > _ROUNDING**2 * loudest))]


def _rows(values: np.ndarray, axis: int | None) -> np.ndarray:
    """(positions, channels), float64; of one number an item (items, 1)."""
    if values.ndim < 2:
        return values.reshape(-1, 1).astype(np.float64)
    place = values.ndim - 1 if axis is None else axis
    return np.moveaxis(values, place, -1).reshape(-1, values.shape[place]).astype(np.float64)


def _item_cosines(out: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (out, wanted))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where((a == b).all(1), 1.0, (a * b).sum(1) / np.where(norm > 0, norm, 1.0))
