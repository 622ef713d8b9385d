"""Which positions of every parameter are left when blocks of groups are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.graph.dependency import Dependency


def kept_positions(dependency: Dependency, keep: Mapping[str, Sequence[int]]) -> dict[str, tuple[list[int], ...]]:
    """Per axis of every parameter and buffer that the graph reads, the positions that stay, ascending.

    Raises `ModelError` as `shrink` does.
    """
    dead = dependency.dead(keep)
    return {name: tuple(dependency.live(axis, dead) for axis in axes) for name, axes in dependency.tensors.items()}


def flat_index(shape: Sequence[int], positions: Sequence[Sequence[int]]) -> Tensor:
    """For a tensor of `shape` cut to `positions`, where each value that is left stood in the flat original."""
    index = torch.zeros((), dtype=torch.long)
    for size, kept in zip(shape, positions, strict=True):
        index = index[..., None] * size + torch.as_tensor(kept, dtype=torch.long)
    return index
