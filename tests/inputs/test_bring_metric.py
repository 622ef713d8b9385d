"""Metrics as users name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tersor.errors import MetricError
from tersor.inputs.metrics import bring
from tersor.measuring.batches import Batches

DATA = Batches.of(torch.randn(6, 3), torch.arange(6))


def predict(*inputs: Any) -> np.ndarray:
    return np.asarray(inputs[0])


def test_built_ins_and_directions() -> None:
    assert not bring("accuracy").lower
    assert bring("mse").lower
    assert bring("lower:mse") == bring("mse") == bring(bring("mse"))
    for wrong in ("acuracy", "higher:mse"):
        with pytest.raises(MetricError):
            bring(wrong)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scores_of_mine.py"
    path.write_text(
        "def mean(predict, batches):\n    return float(sum(predict(*b.arrays()).mean() for b in batches))\n"
        "def loss(predict, batches):\n    return {'a': 1.0, 'b': 2}\n"
        "loss.direction = 'lower'\n"
        "def broken(predict, batches):\n    return batches.no_such_thing\n"
        "def text(predict, batches):\n    return 'good'\n"
    )
    mean = bring(f"{path}:mean")
    assert not mean.lower
    assert isinstance(mean(predict, DATA), float)
    assert bring(f"lower:{path}:mean").lower
    assert bring(f"{path}:loss").lower
    assert not bring(f"higher:{path}:loss").lower
    assert bring(f"{path}:loss")(predict, DATA) == {"a": 1.0, "b": 2.0}
    with pytest.raises(MetricError, match=r"has no attribute 'no_such_thing' at line 7 of .*scores_of_mine\.py"):
        bring(f"{path}:broken")(predict, DATA)
    with pytest.raises(MetricError, match="returned str; it must return a number"):
        bring(f"{path}:text")(predict, DATA)
    with pytest.raises(MetricError, match="no function 'gone'; it has: broken, loss, mean, text"):
        bring(f"{path}:gone")


def test_python_functions() -> None:
    def share(predict: Any, batches: Any) -> float:
        return 0.5

    metric = bring(share)
    assert metric.name == "share"
    assert metric(predict, DATA) == 0.5
    with pytest.raises(MetricError, match="The metric is a int; wanted a name"):
        bring(3)
