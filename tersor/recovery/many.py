"""Several processes that share every batch: each takes a part of its items, gradients are added up.

With `torchrun`, the same command on every process. The mean over a batch is the sum over processes of their own means, each
weighted by its share of the items, so that one process and several take the same steps; only batch norms that move tell them
apart, for each process sees its own items.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from tersor.errors import InputError
from tersor.measuring.batches import Batch


class Alone:
    """One process."""

    rank, count = 0, 1

    def part(self, batch: Batch, items: Tensor) -> tuple[Batch, Tensor, float]:
        """This process' part of a batch, its items, and their share. Raises `InputError` for fewer items than processes."""
        return batch, items, 1.0

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Add up over all processes, in place."""

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """The mean over all processes, in place: the statistics of norms."""

    def total(self, value: float | Tensor) -> float | Tensor:
        """The sum over all processes."""
        return value


class Shared(Alone):
    """The processes of the group that `torch.distributed` was initialised with."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def part(self, batch: Batch, items: Tensor) -> tuple[Batch, Tensor, float]:
        if len(batch) < self.count:
            raise InputError(
                f"A batch has {len(batch)} items and there are {self.count} processes; take larger batches."
            )
        mine = torch.arange(len(batch)).tensor_split(self.count)[self.rank]
        return batch.pick(mine), items[mine], len(mine) / len(batch)

    def add(self, gradients: Sequence[Tensor]) -> None:
        if not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])  # one message instead of hundreds
        dist.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.reshape(gradient.shape))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        floats = [t for t in tensors if t.is_floating_point()]
        self.add(floats)
        for tensor in floats:
            tensor /= self.count

    def total(self, value: float | Tensor) -> float:
        found = torch.tensor([float(value)], dtype=torch.float64)
        dist.all_reduce(found)
        return float(found)


Group = Alone


def processes() -> int:
    """How many `torchrun` started, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def group() -> Group:
    """The processes that `torchrun` started, else this one alone."""
    if processes() < 2:
        return Alone()
    if not dist.is_initialized():
        store, rank, count = next(dist.rendezvous("env://"))
        dist.init_process_group("gloo", store=_apart(store), rank=rank, world_size=count)
    return Shared()


def _apart(store: dist.Store) -> dist.Store:
    """A store without what processes left in it before they were started again: the addresses of those that died.

    torchrun keeps one store over restarts. Only on one machine do all processes know the same number of them.
    """
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return (
        dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store) if one_machine else store
    )
