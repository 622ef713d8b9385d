from __future__ import annotations

import pytest
import torch

from tersor.maths.hadamard import hadamard, turned


@pytest.mark.parametrize("size", [1, 2, 6, 8, 12, 64])
def test_a_rotation_is_its_own_inverse(size: int):
    h = hadamard(size)
    assert torch.equal(h, h.T)
    torch.testing.assert_close(h @ h, torch.eye(size, dtype=torch.float64))


def test_one_loud_value_is_spread_over_its_run():
    x = torch.zeros(3, 16)
    x[1, 5] = 4.0
    y = turned(x, 8, 1)
    assert y.abs().max() == pytest.approx(4 / 8**0.5)
    assert not y[:, 8:].any()
    torch.testing.assert_close(turned(y, 8, 1), x)
    torch.testing.assert_close(turned(x.T, 8, 0), y.T)
