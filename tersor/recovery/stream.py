"""Training data in a random order that depends on nothing but the seed: a run that was killed goes on where it was.

Batch number `step` of a run is the same whoever asks and whenever: its items follow from the seed and the epoch, its
augmentation from the seed and the step. So batches can be made ahead, by several threads; a GPU that holds the whole data
makes them itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.maths.augment import Augment
from tersor.maths.devices import sent
from tersor.measuring.batches import Batch, Batches

AHEAD = 2  # batches a worker
_SHARE = 4  # data may take one part in so many of a device's free memory


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches of `size` items of `data` without end, every item once an epoch; what is left of one is left out, where
    that is not all of it. Items of different shapes stand in different batches. device: where they are wanted; they are
    there where there is room for the data."""

    data: Batches
    size: int
    seed: int = 0
    augment: Augment | None = None
    workers: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    _order: Callable[[int], list[tuple[int, Tensor]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        whole = tuple(self.data.rebatch(len(self.data)))  # one batch for each run of items of the same shape
        object.__setattr__(self, "_whole", whole if self.device.type == "cpu" else _moved(whole, self.device))
        object.__setattr__(self, "_order", lru_cache(2)(self._drawn))  # workers ask for the same epoch again and again

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return max(1, sum(len(part) // self.size for part in self._parts)) if self._full else len(self._parts)

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        """Batch number `step` from the beginning, and which items of the data these are."""
        epoch, at = divmod(step, self.steps)
        part, index = self._order(epoch)[at]
        whole = self._parts[part]
        batch = whole.pick(index if self._apart else sent(index, whole.inputs[0].device))
        if self.augment is not None:
            drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            batch = Batch(tuple(self.augment(batch.inputs, drawn)), batch.labels)
        first = sum(len(each) for each in self._parts[:part])
        return batch.settled(), index + first

    def run(self, first: int, last: int) -> Iterator[tuple[int, Batch, Tensor]]:
        """Steps `first` to `last` (without it), made ahead by the workers, in order."""
        if not self._apart:
            yield from ((step, *self.batch(step)) for step in range(first, last))
            return
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            waiting: deque[Future[tuple[Batch, Tensor]]] = deque()
            asked = first
            for step in range(first, last):
                while asked < last and len(waiting) < 1 + AHEAD * max(1, self.workers):
                    waiting.append(pool.submit(self.batch, asked))
                    asked += 1
                yield (step, *waiting.popleft().result())

    @property
    def _parts(self) -> Sequence[Batch]:
        return getattr(self, "_whole")  # noqa: B009 - set once, in __post_init__

    @property
    def _apart(self) -> bool:
        """Whether the data is where it was read, and not on another device."""
        return self._parts[0].pieces() is not None or self._parts[0].inputs[0].device.type == "cpu"

    @property
    def _full(self) -> bool:
        return any(len(part) >= self.size for part in self._parts)

    def _drawn(self, epoch: int) -> list[tuple[int, Tensor]]:
        """(part, items of it) of every batch of an epoch."""
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_000_000 + epoch)
        found: list[tuple[int, Tensor]] = []
        for number, part in enumerate(self._parts):
            items = torch.randperm(len(part), generator=drawn)
            batches = items.split(self.size)
            found += [(number, batch) for batch in batches if len(batch) == self.size or not self._full]
        return [found[i] for i in torch.randperm(len(found), generator=drawn).tolist()]


def _moved(parts: Sequence[Batch], device: torch.device) -> Sequence[Batch]:
    """`parts` on the device, or as they are where they would not leave it enough memory."""
    tensors = [t for part in parts for t in part.inputs]
    if sum(t.numel() * t.element_size() for t in tensors) * _SHARE > torch.cuda.mem_get_info(device)[0]:
        return parts
    return [Batch(*pytree.tree_map_only(Tensor, lambda t: t.to(device), (p.inputs, p.labels))) for p in parts]
