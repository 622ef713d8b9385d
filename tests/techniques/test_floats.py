"""Rounding to small floats, quantiles, powers of two and block-scaled formats."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import Case, TechniqueLaws, make

from tersor.errors import InputError
from tersor.maths.damage import aim, quadratic
from tersor.maths.grid import PerChannel, PerGroup, absmax
from tersor.maths.levels import FORMATS
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.techniques.floats import Floats


class TestFloats(TechniqueLaws):
    names = {"Floats": Floats}  # noqa: RUF012
    instances = (  # type: ignore[assignment]
        *map(Floats, ("nf4", "fp4", "fp8_e4m3", "fp8_e5m2", "mxfp4", "mxfp8", "log3", "log4")),
        Floats("nf4", PerGroup(5)),
    )
    nested = (Floats("log3", PerChannel()), Floats("fp4", PerChannel()), Floats("fp8", PerChannel()))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        m = case.matrix
        rows = aim(to_matrix(case.w, m.groups, m.transposed), quadratic(case.facts.gram, free_bias=True))
        flat = rows.flatten(0, 1)
        value = absmax(flat, technique._kind()).round(flat).float().reshape(rows.shape)
        return from_matrix(value, case.w.shape, m.groups, m.transposed)


@pytest.mark.parametrize(("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_fp8_has_the_values_that_torch_has(name: str, dtype: torch.dtype):
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()
    finite = every[every.isfinite()].unique()
    assert torch.equal(torch.tensor(FORMATS[name].values), finite)


def test_the_values_of_fp4_nf4_and_powers_of_two():
    assert FORMATS["fp4"].values[7:] == (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    assert len(FORMATS["nf4"].values) == 16
    assert FORMATS["log3"].values == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    assert all(0.0 in f.values and list(f.values) == sorted(set(f.values)) for f in FORMATS.values())


def test_scales_of_the_mx_formats_are_powers_of_two_a_run_of_32():
    case = make("linear", 3)
    w = torch.randn(6, 70, generator=torch.Generator().manual_seed(1))
    gram = torch.eye(71, dtype=torch.float64)[None]
    facts = replace(case.facts, gram=gram)
    weight = Floats("mxfp4").fit(case.matrix, w, facts)
    assert weight.scale.dtype == torch.int8
    assert weight.scale.shape == (6, 3)
    assert weight.nbytes == 6 * 70 // 2 + 18 + weight.table.numel() * 4
    assert (weight.dense() - w).abs().max() < 1


def test_feedback_helps_at_four_bits():
    mine = plain = 0.0
    for seed in range(5):
        case = make("convolution", seed)
        mine += case.damage(Floats("nf4", PerChannel()).fit(case.matrix, case.w, case.facts).dense())
        naive = TestFloats().naive(Floats("nf4", PerChannel()), case)
        plain += case.damage(naive)
    assert mine < 0.6 * plain


def test_an_unknown_format_lists_the_known():
    with pytest.raises(InputError, match="no format 'fp6'; choose one of nf4, fp4"):
        Floats("fp6")
