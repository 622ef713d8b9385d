"""What the linear layers of a block read, in which order, and what their outputs are added to.

Found by running the block once with hooks, so no architecture needs to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_SAME = 1e-5  # of the largest value: sums in another order differ by less


@dataclass(frozen=True)
class Site:
    """Linear layers that read the same tensor: one Gram matrix serves them all.

    names: inside the block, in execution order. joins: where the output of the only one is added to a residual stream, the
    module whose input that stream is ("" for the block itself); else None.
    """

    names: tuple[str, ...]
    joins: str | None


@dataclass(frozen=True)
class Seen:
    """What passed a site: `read` (positions, c), `gave` (positions, r) of all its layers side by side, and the residual
    `stream` (positions, r) where the site joins one."""

    read: Tensor
    gave: Tensor
    stream: Tensor | None


Run = Callable[[nn.Module], Any]
"""Runs a block on something."""


def sites(block: nn.Module, run: Run, wanted: Collection[str]) -> list[Site]:
    """The sites of `block`, in execution order, of the linear layers among `wanted` that are called exactly once."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    with _hooked(block, lambda name, x, y: calls.append((name, x, y))):
        run(block)
    names = [name for name, _, _ in calls]
    found: list[tuple[Tensor, list[str]]] = []
    for name, x, _ in calls:
        if name not in wanted or names.count(name) > 1:
            continue
        if found and _is_same(found[-1][0], x):
            found[-1][1].append(name)
        else:
            found.append((x, [name]))
    return [Site(tuple(some), _joined(calls, some[0]) if len(some) == 1 else None) for _, some in found]


def seen(block: nn.Module, run: Run, site: Site, outputs: bool) -> Seen:
    """What passes `site` while `run(block)`; the run ends there. Without `outputs`, `gave` is empty."""
    read: list[Tensor] = []
    gave: dict[str, Tensor] = {}
    streams: list[Tensor] = []

    def before(name: str, x: Tensor) -> None:
        if name == site.joins:
            streams.append(_flat(x))
        if name == site.names[0]:
            read.append(_flat(x))
            if not outputs:
                raise _Done

    def after(name: str, x: Tensor, y: Tensor) -> None:
        if name in site.names:
            gave[name] = _flat(y)
            if len(gave) == len(site.names):
                raise _Done

    with _hooked(block, after, before), suppress(_Done):
        run(block)
    side_by_side = torch.cat([gave[name] for name in site.names], 1) if outputs else read[0][:, :0]
    return Seen(read[0], side_by_side, streams[0] if streams else None)


class _Done(Exception):
    """Everything was seen."""


@contextmanager
def _hooked(
    block: nn.Module,
    after: Callable[[str, Tensor, Tensor], None],
    before: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """Tell `after` of (name, first input, output) of every module called in `block`, and `before` of its first input."""
    handles = []
    for name, module in block.named_modules():
        handles.append(module.register_forward_hook(_told(name, after)))
        if before is not None:
            handles.append(module.register_forward_pre_hook(_warned(name, before)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _told(name: str, after: Callable[[str, Tensor, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Sequence[Any], output: Any) -> None:
        given = output[0] if isinstance(output, tuple) else output
        if args and isinstance(args[0], Tensor) and isinstance(given, Tensor):
            after(name, args[0], given)

    return hook


def _warned(name: str, before: Callable[[str, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Sequence[Any]) -> None:
        if args and isinstance(args[0], Tensor):
            before(name, args[0])

    return hook


def _joined(calls: Sequence[tuple[str, Tensor, Tensor]], name: str) -> str | None:
    """The module whose input s, added to the output y of `name`, is what a later module reads or the block gives."""
    at = next(i for i, (called, _, _) in enumerate(calls) if called == name)
    whole, y = calls[-1], calls[at][2]  # the block itself ends last
    later = [x for _, x, _ in calls[at + 1 : -1]] + [whole[2]]
    earlier = [("", whole[1])] + [(called, x) for called, x, _ in calls[:at]]
    for called, s in earlier:
        if s.shape[-1] == y.shape[-1] and s.numel() == y.numel():
            total = _flat(s) + _flat(y)
            if any(v.shape[-1] == y.shape[-1] and v.numel() == y.numel() and _close(_flat(v), total) for v in later):
                return called
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _SAME * b.abs().max())


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
