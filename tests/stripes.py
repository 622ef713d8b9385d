"""A task that a small residual network learns in seconds: which way do noisy stripes run."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Small(nn.Module):
    """A residual network for 8 x 8 images in four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(F.relu(y + self.body(y)).mean((2, 3)))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy stripes in four directions, and which."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (count,), generator=g)
    u, v = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    waves = torch.stack([torch.sin(u * 1.5), torch.sin(v * 1.5), torch.sin((u + v) * 1.2), torch.sin((u - v) * 1.2)])
    return waves[label][:, None] + 0.7 * torch.randn(count, 1, 8, 8, generator=g), label


def batches() -> list[tuple[Tensor, Tensor]]:
    """Twelve batches of 100, on which it was not trained."""
    x, y = images(1200, 2)
    return list(zip(x.split(100), y.split(100), strict=True))


@cache
def trained() -> nn.Module:
    """A `Small` that was trained, in evaluation mode; nobody may change it."""
    torch.manual_seed(0)
    module, (x, y) = Small(), images(2000, 1)
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(150):
        at = torch.randint(0, 2000, (128,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(module(x[at]), y[at]).backward()
        optimiser.step()
    return module.eval()
