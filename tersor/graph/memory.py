"""How much memory a walk over calibration data takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.graph.model import Model

ITEMS = 64
BYTES = 32 << 20
"""Of activations: what stays in caches, and what the allocator keeps instead of asking the system each time."""


def together(model: Model) -> int:
    """How many items go through the model at once: at most ITEMS, and no more than BYTES of activations."""
    return max(1, min(ITEMS, BYTES // max(1, peak_bytes(model))))


def cut(batch: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    """A batch in pieces of at most `size` items."""
    return [tuple(x[start : start + size] for x in batch) for start in range(0, batch[0].shape[0], size)]


def peak_bytes(model: Model) -> int:
    """The most bytes of activations, per item, that are alive at one node when each is freed after its last reader."""
    last = {source: node for node in model.graph.nodes for source in node.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    peak = 0

    def visit(node: fx.Node, value: Any) -> Any:
        nonlocal peak
        if node.op != "get_attr":
            alive[node] = sum(v.numel() * v.element_size() for v in pytree.tree_leaves(value) if isinstance(v, Tensor))
        peak = max(peak, sum(alive.values()))
        for source in node.all_input_nodes:
            if last[source] is node:
                alive.pop(source, None)
        return value

    model.interpret(model.example, visit)
    return peak // max(1, len(model.example[0]))
