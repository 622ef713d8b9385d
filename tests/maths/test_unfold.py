"""Unfolding against torch's own convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.maths.unfold import from_matrix, positions, to_matrix, unfold

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def applied(x, w, groups, transposed=False, **how):
    """(positions, rows) through the unfolded product."""
    y = unfold(x, tuple(w.shape[2:]), groups=groups, transposed=transposed, **how)
    y = y @ to_matrix(w, groups, transposed).mT
    return y.transpose(0, 1).reshape(y.shape[1], -1)


def rows_of(y):
    return y.movedim(1, -1).reshape(-1, y.shape[1])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_unfolded_product_is_the_convolution(rank, groups, data):
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, stride, padding, dilation = draw(1, 3), draw(1, 2), draw(0, 2), draw(1, 2)
    x = torch.randn(2, 4, *draw(5, 7), dtype=torch.float64)
    w = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64)
    y = CONVOLUTIONS[rank](x, w, None, stride, padding, dilation, groups)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    torch.testing.assert_close(applied(x, w, groups, **how), rows_of(y))
    assert positions(x.shape, kernel, **how) == len(rows_of(y))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_unfolded_product_is_the_transposed_convolution(rank, groups, data):
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, stride, dilation = draw(1, 3), draw(2, 3), draw(1, 2)
    padding, extra = draw(0, 2), draw(0, 1)
    x = torch.randn(2, 4, *draw(4, 5), dtype=torch.float64)
    w = torch.randn(4, 6 // groups, *kernel, dtype=torch.float64)
    y = TRANSPOSED[rank](x, w, None, stride, padding, extra, groups, dilation)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": extra}
    torch.testing.assert_close(applied(x, w, groups, transposed=True, **how), rows_of(y))
    assert positions(x.shape, kernel, transposed=True, **how) == len(rows_of(y))


def test_linear_flattens_all_leading_axes():
    x, w = torch.randn(2, 3, 5, 7), torch.randn(4, 7)
    y = unfold(x) @ to_matrix(w).mT
    torch.testing.assert_close(y.reshape(2, 3, 5, 4), F.linear(x, w))
    assert positions(x.shape) == 30


def test_picked_positions_are_rows_of_the_whole():
    x = torch.randn(3, 4, 6, 5)
    at = torch.tensor([0, 7, 31, 89])
    how = {"kernel": (3, 3), "padding": (1, 1), "groups": 2}
    torch.testing.assert_close(unfold(x, at=at, **how), unfold(x, **how)[:, at])
    torch.testing.assert_close(unfold(x, at=at[:3]), unfold(x)[:, at[:3]])


@pytest.mark.parametrize("shape", [(6, 5), (6, 2, 3), (6, 2, 3, 2), (6, 2, 1, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_there_and_back(shape, groups, transposed):
    if transposed and len(shape) == 2:
        pytest.skip("a linear is never transposed")
    w = torch.randn(shape)
    assert torch.equal(from_matrix(to_matrix(w, groups, transposed), shape, groups, transposed), w)
