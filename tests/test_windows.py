"""What is left of a matrix, as indices into the whole one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.graph.model import capture
from tersor.site import matrices
from tersor.windows import Window, _window, windows

NETS = {
    "linear": (nn.Linear(5, 3), (2, 5)),
    "grouped": (nn.Conv2d(4, 6, (3, 2), groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
}


def parts(window: Window) -> tuple[torch.Tensor, ...]:
    return window.group, window.rows, window.columns


@pytest.mark.parametrize("name", NETS)
def test_all_that_stays_is_the_whole_matrix(name: str) -> None:
    """What is known without a look at every weight is what the look finds."""
    net, shape = NETS[name]
    model = capture(net, (torch.randn(shape),))
    matrix = matrices(model)[0]
    looked_at = _window(matrix, [range(size) for size in matrix.shape])
    known = windows(model, {})[matrix.name]
    assert known.shape == looked_at.shape
    assert known.width == looked_at.width
    assert all(torch.equal(a, b) for a, b in zip(parts(known), parts(looked_at), strict=True))


def test_an_index_takes_no_memory_for_every_weight() -> None:
    model = capture(nn.Linear(64, 48), (torch.randn(2, 64),))
    matrix = matrices(model)[0]
    for window in (windows(model, {})[matrix.name], _window(matrix, [range(40), range(64)])):
        assert sum(t.untyped_storage().nbytes() for t in parts(window)) <= 8 * (1 + 48 + 64)
