"""How much memory a walk over calibration data takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.graph.model import Model


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
