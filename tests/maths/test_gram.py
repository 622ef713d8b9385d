"""Sums of products, and what few samples make of them."""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor

from tersor.maths.gram import BLOCKS, Scatter, scatter, shrunk


def samples(items: int, seed: int, c: int = 40, positions: int = 1) -> Tensor:
    """(items * positions, c), the positions of an item being alike."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(c, c, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixing = mixing * torch.logspace(0, -2, c, dtype=torch.float64)
    x = torch.randn(items, c, generator=random, dtype=torch.float64).repeat_interleave(positions, 0)
    return (x + 0.1 * torch.randn(x.shape, generator=random, dtype=torch.float64)) @ mixing + 0.7


def gram(x: Tensor) -> Tensor:
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    return (wide.mT @ wide / len(x))[None]


def seen(x: Tensor, pieces: int = 4, positions: int = 1) -> Scatter:
    return reduce(add, (scatter(part[None], len(part) // positions) for part in x.chunk(pieces)))


def test_nearer_to_what_many_items_say_and_positive_definite_below_c_of_them():
    truth = gram(samples(200_000, 0))
    for items, positions in ((32, 1), (20, 1), (32, 8)):
        x = samples(items, 5, positions=positions)
        few, better = gram(x), shrunk(gram(x), seen(x, 2))
        assert (better - truth).square().sum() < (few - truth).square().sum()
        assert torch.linalg.eigvalsh(better[0])[0] > 1e-4 * torch.linalg.eigvalsh(truth[0])[-1]


def test_positions_of_one_item_do_not_count_as_items():
    alone, repeated = samples(16, 5), samples(16, 5, positions=16)

    def moved(x: Tensor, pieces: int, positions: int) -> float:
        return float((shrunk(gram(x), seen(x, pieces, positions)) - gram(x)).norm() / gram(x).norm())

    assert moved(repeated, 1, 16) > 0.7 * moved(alone, 1, 1)
    assert moved(repeated, 4, 16) > 0.7 * moved(alone, 4, 1) > 0  # pieces of fewer items than BLOCKS


def test_means_and_the_constant_stay_and_many_items_are_left_alone():
    x = samples(24, 3)
    few, better = gram(x), shrunk(gram(x), seen(x))
    assert torch.equal(better[:, -1], few[:, -1])
    assert torch.equal(better[:, :, -1], few[:, :, -1])
    assert torch.allclose(better.diagonal(dim1=1, dim2=2).sum(), few.diagonal(dim1=1, dim2=2).sum())
    for items in (200, 50_000):  # five times the columns: no variance is missing
        x = samples(items, 4)
        assert torch.equal(shrunk(gram(x), seen(x, 10)), gram(x))


def test_dead_inputs_and_nothing_at_all():
    nothing = torch.zeros(2, 5, 5, dtype=torch.float64)
    found = scatter(torch.zeros(2, 40, 4))
    assert found.blocks >= BLOCKS
    assert torch.equal(shrunk(nothing, found), nothing)
    assert torch.equal(shrunk(nothing[:, :1, :1], found), nothing[:, :1, :1])
