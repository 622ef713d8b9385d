"""Grids for activations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.ranges import entropy, minmax, mse, percentile, robust


def histogram(x: torch.Tensor, bins: int = 512) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    low, high = float(x.min()), float(x.max())
    return torch.histc(x, bins, low, high), torch.linspace(low, high, bins + 1), low, high


def error(x: torch.Tensor, grid: tuple[float, int]) -> float:
    scale, zero = grid
    return float((scale * ((x / scale + zero).round().clamp(0, 255) - zero) - x).square().mean())


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.floats(-3, 3), st.sampled_from([minmax, percentile, mse, robust, entropy]))
def test_zero_is_exact_and_codes_are_unsigned(seed: int, shift: float, method):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) + shift
    scale, zero = method(*histogram(x))
    assert isinstance(zero, int)
    assert 0 <= zero <= 255
    assert scale > 0
    assert torch.tensor(scale).item() == scale


def test_minmax_covers_everything():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    scale, zero = minmax(*histogram(x))
    assert -scale * (zero + 0.51) <= x.min()
    assert scale * (255.51 - zero) >= x.max()
    assert minmax(*histogram(x.relu()))[1] == 0


def test_mse_and_percentile_clip_an_outlier():
    x = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])])
    counts = histogram(x, 4096)
    assert error(x[:-1], percentile(*counts)) < 0.1 * error(x[:-1], minmax(*counts))
    assert error(x, mse(*counts)) < error(x, minmax(*counts))


def test_robust_is_the_percentile_unless_that_cuts_off_what_matters():
    plain = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert robust(*histogram(plain, 2048)) == percentile(*histogram(plain, 2048))
    massive = torch.cat([plain, torch.full((4,), 2000.0)])
    assert percentile(*histogram(massive, 2048))[0] < 0.1
    assert robust(*histogram(massive, 2048)) == mse(*histogram(massive, 2048))


def test_a_sample_that_saw_only_zeros_does_not_cut_off_the_extremes():
    counts = torch.zeros(2048)
    counts[0] = 65536
    for method in (mse, robust):
        scale, zero = method(counts, torch.linspace(0, 6, 2049), 0.0, 6.0)
        assert scale * (255 - zero) == pytest.approx(6, rel=0.05)


def test_percentile_keeps_the_share_that_was_asked_for():
    x = torch.linspace(0, 1, 10_001)
    scale, zero = percentile(*histogram(x, 1000), share=0.9)
    assert scale * (255 - zero) == pytest.approx(0.95, abs=2e-3)


@pytest.mark.parametrize("method", [minmax, percentile, mse, robust])
def test_an_activation_that_is_always_zero_has_a_grid(method):
    assert method(torch.zeros(8), torch.linspace(0, 0, 9), 0.0, 0.0) == (1.0, 0)


def test_pixels_do_not_fall_half_way_between_codes():
    """Normalised 8-bit pixels on the grid of their own extremes would all be ties."""
    pixels = torch.arange(256) * 2 / 255 - 1
    counts = torch.ones(512)
    for find in (minmax, robust, mse):
        scale, zero = find(counts, torch.linspace(-1, 1, 513), -1.0, 1.0)
        off = (pixels.double() / scale + zero) % 1 - 0.5
        assert off.abs().min() > 1e-4
        assert (0 - zero) * scale <= -1 + scale
        assert (255 - zero) * scale >= 1 - scale


def test_entropy_gives_up_a_long_tail_and_keeps_what_is_even():
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(100_000, generator=draw), torch.tensor([60.0, -60.0])])
    counts, edges, low, high = histogram(x, 2048)
    scale, _ = entropy(counts, edges, low, high)
    assert 4 < 255 * scale / 2 < 15  # the grid reaches a few standard deviations, not 60
    even = torch.linspace(-1, 1, 100_000)
    scale, _ = entropy(*histogram(even, 2048))
    assert 255 * scale == pytest.approx(2, rel=0.05)
    assert entropy(torch.zeros(8), torch.linspace(0, 1, 9), 0.0, 1.0) == minmax(
        torch.zeros(8), torch.linspace(0, 1, 9), 0.0, 1.0
    )
