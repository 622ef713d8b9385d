"""Images as they might also have been. Each takes the flat inputs of a batch and a generator, and gives inputs alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tersor.maths.devices import sent

Augment = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]
"""New inputs for the flat inputs of a batch, drawn with the generator."""


def flip(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
    """Images (items, channels, height, width), half of them mirrored."""
    mirrored = torch.rand(len(inputs[0]), generator=drawn) < 0.5
    return tuple(
        torch.where(sent(mirrored, x.device).reshape(-1, 1, 1, 1), x.flip(-1), x) if x.ndim == 4 else x for x in inputs
    )


def crop(inputs: tuple[Tensor, ...], drawn: torch.Generator) -> tuple[Tensor, ...]:
    """Images shifted by up to an eighth of their size in each direction, zeros coming in."""
    return tuple(_shifted(x, drawn) if x.ndim == 4 else x for x in inputs)


def _shifted(x: Tensor, drawn: torch.Generator) -> Tensor:
    n, _, height, width = x.shape
    most = [side // 8 for side in (height, width)]
    wide = torch.nn.functional.pad(x, (most[1], most[1], most[0], most[0]))
    down, right = (torch.randint(0, 2 * m + 1, (n,), generator=drawn) for m in most)
    if x.device.type != "cpu":
        return windows(wide, down, right, height, width)
    out = torch.empty_like(x)
    for i, (top, left) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):  # faster than one big gather
        out[i] = wide[i, :, top : top + height, left : left + width]
    return out


def windows(wide: Tensor, down: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Of each image of `wide` (items, channels, ...) the `height` by `width` that begin at its `down` and `right`."""
    items, channels = (torch.arange(size, device=wide.device) for size in wide.shape[:2])
    rows, columns = (
        sent(start, wide.device)[:, None] + torch.arange(size, device=wide.device)
        for start, size in ((down, height), (right, width))
    )
    return wide[items[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTS: dict[str, Augment] = {each.__name__: each for each in (crop, flip)}
