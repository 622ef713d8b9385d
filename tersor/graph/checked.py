"""Calibration data is looked at before it is believed.

One Inf, an all-zero set or a wrong shape makes every statistic worthless without a word from anyone; here each is a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tersor.errors import DataError
from tersor.graph.model import Model

Batch = tuple[Tensor, ...]
_LARGEST = 1e12  # no sensor and no normalisation gives more; products of it overflow float32


def checked(model: Model, batches: Iterable[Sequence[Tensor]]) -> Iterator[Batch]:
    """The same batches, each checked against the inputs of `model`.

    Raises `DataError` on a batch that does not fit or is not finite, and, at the end of the stream, on data that was
    empty or never changed.
    """
    extremes: dict[str, tuple[float, float]] = {}
    items = 0
    for index, batch in enumerate(batches):
        flat = tuple(batch)
        _fits(model, flat, index)
        for name, value in zip(model.inputs, flat, strict=True):
            if value.is_floating_point() and value.numel():
                extremes[name] = _widened(extremes.get(name), _finite(name, value, index))
        items += flat[0].shape[0] if flat else 0
        yield flat
    if items == 0:
        raise DataError("The calibration data is empty: no batch held an item; give at least one batch of inputs.")
    _alive(extremes, items)


def finite(name: str, value: Tensor) -> None:
    """Raise `DataError` when the activation `name` left the finite numbers."""
    if not value.is_floating_point() or bool(torch.isfinite(value.sum())):
        return
    bad = int((~torch.isfinite(value)).sum())
    if bad:  # else the sum alone was too large
        raise DataError(
            f"On the calibration data the model's value '{name}' holds {bad} NaN or Inf of {value.numel()}; "
            "check the model's weights and how its inputs are normalised."
        )


def _fits(model: Model, flat: Batch, index: int) -> None:
    if len(flat) != len(model.inputs):
        raise DataError(
            f"Batch {index} of the calibration data holds {len(flat)} tensors; the model takes {len(model.inputs)} "
            f"({', '.join(model.inputs)}). Give one tensor an input, without labels."
        )
    for name, value, example in zip(model.inputs, flat, model.example, strict=True):
        if value.shape[1:] != example.shape[1:] or value.dtype != example.dtype:
            raise DataError(
                f"Batch {index} of the calibration data gives '{name}' as {_told(value)}; the model was captured with "
                f"{_told(example)} (the first axis is the batch). Bring the data into that shape and type."
            )


def _finite(name: str, value: Tensor, index: int) -> tuple[float, float]:
    low, high = (float(v) for v in torch.aminmax(value))
    if not (abs(low) < _LARGEST and abs(high) < _LARGEST):
        bad = ~torch.isfinite(value)
        where = torch.nonzero(bad if bool(bad.any()) else value.abs() >= _LARGEST)
        what = "NaN or Inf" if bool(bad.any()) else f"values as large as {max(abs(low), abs(high)):.3g}"
        raise DataError(
            f"Batch {index} of the calibration data holds {what} in input '{name}' ({len(where)} of {value.numel()} "
            f"values, the first at {tuple(where[0].tolist())}); remove or repair these items."
        )
    return low, high


def _widened(before: tuple[float, float] | None, now: tuple[float, float]) -> tuple[float, float]:
    return now if before is None else (min(before[0], now[0]), max(before[1], now[1]))


def _alive(extremes: dict[str, tuple[float, float]], items: int) -> None:
    constant = {name: low for name, (low, high) in extremes.items() if low == high}
    if extremes and len(constant) == len(extremes):
        name, value = next(iter(constant.items()))
        raise DataError(
            f"The calibration data is constant: every value of input '{name}' in all {items} items is {value:g}; "
            "give real inputs, prepared as for prediction."
        )


def _told(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
