"""What multiple of channels a runtime rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.staircase import WIDTHS, least, rewarded
from tersor.targets import target_called


def test_each_width_is_a_multiple_of_just_that() -> None:
    assert all(
        (width % multiple == 0 and (width // multiple) % 2) or multiple == 32 for multiple, width in WIDTHS.items()
    )


@pytest.mark.parametrize(
    ("speeds", "wanted"),
    [
        ({1: 95.0, 2: 99.0, 8: 100.0}, 1),
        ({1: 60.0, 2: 70.0, 4: 89.0, 8: 92.0, 16: 100.0}, 8),
        ({}, 1),
    ],
)
def test_the_least_that_is_nearly_as_fast(speeds: dict[int, float], wanted: int) -> None:
    assert least(speeds) == wanted


def test_on_a_real_runtime(tmp_path: Path) -> None:
    assert rewarded([target_called("onnxruntime", "fp32")], 1, tmp_path) in WIDTHS
