"""Images as they might also have been. Each takes the flat inputs of a batch and a generator, and gives inputs alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Augment = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]
"""New inputs for the flat inputs of a batch, drawn with the generator."""


def flip(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
    """Images (items, channels, height, width), half of them mirrored."""
    mirrored = torch.rand(len(inputs[0]), generator=drawn) < 0.5
    return tuple(torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(-1), x) if x.ndim == 4 else x for x in inputs)


def crop(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
    """Images shifted by up to an eighth of their size in each direction, zeros coming in."""
    return tuple(_shifted(x, drawn) if x.ndim == 4 else x for x in inputs)


def _shifted(x: Tensor, drawn: torch.Generator) -> Tensor:
    n, _, height, width = x.shape
    most = [side // 8 for side in (height, width)]
    wide = torch.nn.functional.pad(x, (most[1], most[1], most[0], most[0]))
    down, right = (torch.randint(0, 2 * m + 1, (n,), generator=drawn) for m in most)
    out = torch.empty_like(x)
    for i, (top, left) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):  # faster than one big gather
        out[i] = wide[i, :, top : top + height, left : left + width]
    return out


AUGMENTS: dict[str, Augment] = {each.__name__: each for each in (crop, flip)}
