"""Sixteen-bit floats."""

from __future__ import annotations

import pytest
import torch
from laws import TechniqueLaws, make

from tersor.errors import InputError
from tersor.techniques.cast import Cast


class TestCast(TechniqueLaws):
    names = {"Cast": Cast}  # noqa: RUF012
    instances = (Cast("fp16"), Cast("bf16"))  # type: ignore[assignment]

    @pytest.mark.parametrize("value", [0.0, -1e-30, 1e30])
    def test_finite_on_constant_and_huge_weights(self, value: float):  # type: ignore[override]
        case = make("linear", 1)
        for t in self.instances:
            assert torch.isfinite(t.fit(case.matrix, torch.full_like(case.w, value), case.facts).dense()).all()


def test_it_is_torchs_cast():
    case = make("linear", 5)
    assert torch.equal(Cast("bf16").fit(case.matrix, case.w, case.facts).dense(), case.w.bfloat16().float())
    assert Cast("fp16").fit(case.matrix, 1e6 * torch.ones_like(case.w), case.facts).dense().max() == 65504


def test_an_unknown_format_lists_the_known():
    with pytest.raises(InputError, match="no 16-bit format 'fp32'; choose one of fp16, bf16"):
        Cast("fp32")
