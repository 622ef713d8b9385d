"""The passes of a training on a GPU: recorded once, then replayed.

The steps of a small network are bound by the time it takes to launch their kernels one by one; a recorded graph launches all
at once. Source: CUDA graphs (NVIDIA), as torch gives them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.measuring.batches import Batch

_WARM = 3  # passes before one is recorded
Pass = Callable[[Batch, Tensor | None], Tensor]
"""The loss of a batch whose items, of the data, these are."""


def passed(loss_of: Pass, batch: Batch, items: Tensor | None, factor: float) -> Tensor:
    """Forward and backward once: adds `factor` times the gradients to the parameters', gives the loss."""
    loss = loss_of(batch, items)
    (loss * factor).backward()
    return loss.detach()


def local() -> torch.device:
    """This process' own GPU, of those that the processes of this machine share."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """A stream of its own on a GPU, as recording asks for; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(before)
    with torch.cuda.stream(own):
        yield
    before.wait_stream(own)


class Replay:
    """`passed` for batches on a GPU. After a few passes one is recorded; batches of the same shapes replay it.

    What cannot be recorded (a form of weight or a loss that must look at values on the way) is run as it is. Gradients must
    stay where they are in memory between passes, and so must parameters.
    """

    def __init__(self, loss_of: Pass):
        self._loss_of = loss_of
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs, self._possible = 0, True

    def __call__(self, batch: Batch, items: Tensor | None, factor: float) -> Tensor:
        if self._graph is None and self._possible and self._runs >= _WARM:
            self._record(batch)
        if self._graph is None or _shapes(batch) != self._shapes:
            self._runs += 1
            return passed(self._loss_of, batch, items, factor)
        for own, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            own.copy_(given)
        self._factor.fill_(factor)
        self._graph.replay()
        return self._loss

    def _record(self, batch: Batch) -> None:
        self._factor = torch.ones((), device="cuda")
        inputs, labels = pytree.tree_map_only(Tensor, lambda t: t.cuda(), (batch.inputs, batch.labels))
        self._batch, self._shapes = Batch(tuple(inputs), labels), _shapes(batch)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                loss = self._loss_of(self._batch, None)
                (loss * self._factor).backward()
        except RuntimeError as error:
            torch.cuda.synchronize()
            self._possible = False
            warnings.warn(
                f"Steps of this training run kernel by kernel, for they could not be recorded: {error}", stacklevel=2
            )
            return
        self._graph, self._loss = graph, loss.detach()


def _tensors(batch: Batch) -> list[Tensor]:
    return [t for t in pytree.tree_leaves((batch.inputs, batch.labels)) if isinstance(t, Tensor)]


def _shapes(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in _tensors(batch)]
