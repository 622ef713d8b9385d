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
from tersor.measuring.metrics import Metric
from tersor.recovery.stream import Stream

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


def test_a_function_may_change_what_it_is_given() -> None:
    """Its inputs and labels are copies: neither the next call nor the user's own arrays see what it did."""
    inputs, labels = np.arange(12.0, dtype=np.float32).reshape(6, 2), np.arange(6)
    data = Batches.of(inputs, labels, 4)
    before = data.digest()

    def spoils(predict: Any, batches: Batches) -> float:
        total = 0.0
        for batch in batches:
            total += float(predict(*batch.arrays()).sum()) + float(batch.labels.sum())
            batch.inputs[0].mul_(0)
            batch.arrays()[0][:] = -1
            batch.labels.zero_()
        return total

    for metric in (bring(spoils), bring(Metric("mine", spoils))):
        assert [metric(predict, data) for _ in range(3)] == [66.0 + 15.0] * 3
    assert data.digest() == before
    assert inputs.tolist() == [[2.0 * i, 2.0 * i + 1] for i in range(6)]
    assert labels.tolist() == list(range(6))


def test_an_augmentation_that_writes_in_place_leaves_the_data_alone() -> None:
    data = Batches.of(torch.ones(8, 2))

    def writes(inputs: tuple[torch.Tensor, ...], drawn: torch.Generator) -> tuple[torch.Tensor, ...]:
        return tuple(x.mul_(0) for x in inputs)

    batch, _ = Stream(data, 4, augment=writes).batch(0)
    assert not batch.inputs[0].any()
    assert bool((data.parts[0].inputs[0] == 1).all())
