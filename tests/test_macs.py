from __future__ import annotations

import torch
from torch import nn

from tersor.graph.macs import macs
from tersor.graph.model import capture


def test_counts_by_hand() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8 * 8 positions, 8 x 27
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 4 * 4 positions, 8 x 9
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # 4 * 4 input positions, 8 x 16
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    counted = macs(capture(module, (torch.randn(2, 3, 8, 8),)))
    assert counted == {"0": 64 * 8 * 27, "1": 16 * 8 * 9, "2": 16 * 8 * 16, "4": 256 * 10}
