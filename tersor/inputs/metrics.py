"""Metrics as users name them: a built-in's name, or `path/to/file.py:function`, with an optional direction in front."""

from __future__ import annotations

from typing import Any

from tersor.errors import MetricError
from tersor.inputs import functions
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Metric, Predict, Score, from_function
from tersor.measuring.scores import built_in


def bring(metric: Any) -> Metric:
    """The metric that `metric` names or is.

    A string is a built-in's name or a function `metric(predict, batches) -> float | dict[str, float]`, optionally after
    `lower:` or `higher:`; without, a function's attribute `direction` counts, else higher is better. Raises
    `MetricError` where it is unknown; what the function raises later is reported with the user's line.
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        if not callable(metric):
            raise MetricError(f"The metric is a {type(metric).__name__}; wanted a name, a function or a Metric.")
        return from_function(functions.origin(metric), metric)
    direction, plain = _direction(metric)
    if ":" not in plain:
        return built_in(metric)
    function = functions.named(plain, "METRIC", MetricError)

    def located(predict: Predict, batches: Batches) -> Score:
        return functions.called(function, f"METRIC '{plain}'", MetricError, predict, batches)

    found = from_function(plain, function, None if direction is None else direction == "lower")
    return Metric(found.name, located, found.lower, found.bounded, found.original)


def _direction(text: str) -> tuple[str | None, str]:
    for direction in ("lower", "higher"):
        if text.startswith(direction + ":"):
            return direction, text[len(direction) + 1 :]
    return None, text
