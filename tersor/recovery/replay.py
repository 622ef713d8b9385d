"""The passes of a training on a GPU: recorded once, then replayed.

The steps of a small network are bound by the time it takes to launch their kernels one by one; a recorded graph launches all
at once. Source: CUDA graphs (NVIDIA), as torch gives them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.measuring.batches import Batch

_WARM = 3  # passes before one is recorded
Pass = Callable[[Batch, Tensor | None], Tensor]
"""The loss of a batch whose items, of the data, these are."""


def passed(loss_of: Pass, batch: Batch, items: Tensor | None, factor: float | Tensor) -> Tensor:
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


class Aside:
    """Work beside what is asked for next, until `join`; on a CPU before it."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is asked for inside."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What follows comes after all of it."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


class Recorded:
    """Work on a GPU that does the same to the same memory every time: recorded after a few times, then replayed.

    What cannot be recorded (a form of weight or a loss that must look at values on the way) is run as it is. What it gives is
    overwritten by the next time.
    """

    def __init__(self, work: Callable[[], Any]):
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs, self.possible = 0, True

    def __call__(self) -> Any:
        if self._graph is None and self.possible and self._runs >= _WARM:
            self._record()
        if self._graph is None:
            self._runs += 1
            return self._work()
        self._graph.replay()
        return self._found

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self._found = self._work()
        except RuntimeError as error:
            torch.cuda.synchronize()
            self.possible = False
            warnings.warn(
                f"Steps of this training run kernel by kernel, for they could not be recorded: {error}", stacklevel=2
            )
            return
        self._graph = graph


class Replay:
    """`passed` for batches on a GPU: batches of the same shapes are recorded. Gradients must stay where they are in memory
    between passes, and so must parameters."""

    def __init__(self, loss_of: Pass):
        self._loss_of = loss_of
        self._batch: Batch | None = None

    def __call__(self, batch: Batch, items: Tensor | None, factor: float) -> Tensor:
        if self._batch is None:
            self._prepare(batch)
        assert self._batch is not None
        if not self._recorded.possible or _shapes(batch) != _shapes(self._batch):
            return passed(self._loss_of, batch, items, factor)
        for own, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            own.copy_(given)
        self._factor.fill_(factor)
        return self._recorded()

    def _prepare(self, first: Batch) -> None:
        self._factor = torch.ones((), device="cuda")
        inputs, labels = pytree.tree_map_only(Tensor, lambda t: t.to("cuda", copy=True), (first.inputs, first.labels))
        batch = self._batch = Batch(tuple(inputs), labels)
        self._recorded = Recorded(lambda: passed(self._loss_of, batch, None, self._factor))


def _tensors(batch: Batch) -> list[Tensor]:
    return [t for t in pytree.tree_leaves((batch.inputs, batch.labels)) if isinstance(t, Tensor)]


def _shapes(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in _tensors(batch)]
