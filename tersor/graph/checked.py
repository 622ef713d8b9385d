"""Calibration data is looked at before it is believed.

One Inf, an all-zero set or a wrong shape makes every statistic worthless without a word from anyone; here each is a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.errors import DataError
from tersor.graph import lines
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


def is_finite(value: Tensor) -> bool:
    """Whether every number of a tensor is finite."""
    # the sum is quick, and may itself be too large
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


class Finite:
    """Watches one pass. Minus infinity that a softmax takes away is a mask and no fault; what reaches an output is one."""

    def __init__(self) -> None:
        self._odd: dict[str, tuple[fx.Node, bool]] = {}

    def see(self, node: fx.Node, value: Any) -> bool:
        """Whether a node's value is finite. Raises `DataError` at the output of the graph where that is not."""
        if node.op == "output":
            self._check(node, value)
            return True
        if not isinstance(value, Tensor) or not value.is_floating_point() or is_finite(value):
            return True
        self._odd.setdefault(node.name, (node, bool(value.isnan().any())))
        return False

    def _check(self, node: fx.Node, values: Any) -> None:
        bad = sum(int((~torch.isfinite(v)).sum()) for v in pytree.tree_leaves(values) if _is_float(v))
        if not bad:
            return
        nan = any(bool(v.isnan().any()) for v in pytree.tree_leaves(values) if _is_float(v))
        began = next((n for n, is_nan in self._odd.values() if is_nan or not nan), node)
        while odd := [each for each in began.all_input_nodes if each.name in self._odd]:
            began = odd[0]
        line = lines.of_node(began)
        raise DataError(
            f"On the calibration data the model's outputs hold {bad} NaN or Inf, which begin in its activation '{began.name}'"
            f"{f' at {line}' if line else ''}; check the model's weights and how its inputs are normalized."
        )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _fits(model: Model, flat: Batch, index: int) -> None:
    if len(flat) != len(model.inputs):
        raise DataError(
            f"Batch {index} of the calibration data holds {len(flat)} tensors; the model takes {len(model.inputs)} "
            f"({', '.join(model.inputs)}). Give one tensor per input, without labels."
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
