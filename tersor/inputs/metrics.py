"""Metrics as users name them: a built-in's name, or `path/to/file.py:function`, with an optional direction in front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tersor.errors import MetricError
from tersor.inputs import functions
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Metric, Predict, Score, from_function
from tersor.measuring.scores import BUILT_IN, built_in


def bring(metric: Any) -> Metric:
    """The metric that `metric` names or is.

    A string is a built-in's name or a function `metric(predict, batches) -> float | dict[str, float]`, optionally after
    `lower:` or `higher:`; without, a function's attribute `direction` counts, else higher is better. Raises
    `MetricError` where it is unknown; what the function raises later is reported with the user's line.
    """
    if isinstance(metric, Metric):
        return metric if metric in BUILT_IN.values() else replace(metric, own=True)
    if callable(metric):
        return _located(functions.origin(metric), metric, None)
    if not isinstance(metric, str):
        raise MetricError(f"The metric is a {type(metric).__name__}; wanted a name, a function or a Metric.")
    direction, plain = _direction(metric)
    if ":" not in plain:
        return built_in(metric)
    return _located(plain, functions.named(plain, "METRIC", MetricError), direction)


def _located(name: str, function: Callable[[Predict, Batches], Score], direction: str | None) -> Metric:
    def located(predict: Predict, batches: Batches) -> Score:
        return functions.called(function, f"The metric {name}", MetricError, predict, batches)

    declared = from_function(name, function, None if direction is None else direction == "lower")
    return replace(declared, function=located)


def _direction(text: str) -> tuple[str | None, str]:
    for direction in ("lower", "higher"):
        if text.startswith(direction + ":"):
            return direction, text[len(direction) + 1 :]
    return None, text
