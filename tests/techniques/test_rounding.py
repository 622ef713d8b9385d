"""Rounding to a grid."""

from __future__ import annotations

import pytest
import torch
from laws import Case, TechniqueLaws, make

from tersor.errors import InputError
from tersor.maths.damage import aim, quadratic
from tersor.maths.grid import PerChannel, PerGroup, PerTensor, absmax
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.techniques.rounding import Rounding


class TestRounding(TechniqueLaws):
    instances = (  # type: ignore[assignment]
        Rounding(),
        Rounding(4),
        Rounding(3, False),
        Rounding(2, True, PerTensor()),
        Rounding(4, False, PerTensor()),
        Rounding(4, True, PerGroup(5)),
        Rounding(3, False, PerGroup(4)),
        Rounding(1, False),
        Rounding(1, True),
    )
    keeps_zeros = instances[:-1]  # type: ignore[assignment]
    nested = tuple(Rounding(bits) for bits in (2, 3, 4, 6, 8))  # type: ignore[assignment]

    def naive(self, technique, case: Case):
        m = case.matrix
        q = quadratic(case.facts.gram, free_bias=True)
        rows = aim(to_matrix(case.w, m.groups, m.transposed), q)
        flat = rows.flatten(0, 1)
        value = absmax(flat, technique._kind()).round(flat).float().reshape(rows.shape)
        return from_matrix(value, case.w.shape, m.groups, m.transposed)


def test_per_channel_int8_is_what_runtimes_expect():
    case = make("convolution", 3)
    weight = Rounding().fit(case.matrix, case.w, case.facts)
    assert weight.codes.dtype == torch.int8
    assert weight.codes.shape == case.w.shape
    assert weight.codes.abs().max() <= 127
    assert weight.scale.shape == (8, 1)
    assert torch.equal(weight.zero, torch.zeros(1, 1, dtype=torch.int8))
    assert weight.axis == 0
    assert torch.equal(weight.codes.float() * weight.scale.reshape(8, 1, 1, 1), weight.dense())
    assert weight.nbytes == case.w.numel() + 8 * 4 + 1


def test_weights_already_on_a_coarser_grid_stay_as_they_are():
    case = make("linear", 4)
    on_grid = (case.w * 3).round().clamp(-7, 7) * 0.25
    on_grid[:, 0] = 7 * 0.25
    for bits in (4, 5, 8):
        assert torch.allclose(Rounding(bits).fit(case.matrix, on_grid, case.facts).dense(), on_grid, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 9])
def test_impossible_bits_are_refused(bits: int):
    with pytest.raises(InputError, match=f"grid of {bits} bits was asked for; 1 to 8"):
        Rounding(bits)


def test_a_grid_without_zero_cannot_drop_columns():
    case = make("linear", 5)
    with pytest.raises(InputError, match=r"holds no zero; use bits=2 or symmetric=False"):
        Rounding(1, True, PerChannel()).fit(case.matrix, case.w, case.facts, keep=(0, 1))
