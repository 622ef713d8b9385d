"""What a forward pass writes into a slice of a value, as operators that have a derivative.

A captured graph holds `aten.copy(old, new)` for `old[...] = new`: the new values in the shape and type of the old ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def spell_out_copies(module: fx.GraphModule) -> None:
    """Replace, in place, every `copy` by its new values, spread and converted where they have to be."""
    for node in module.graph.find_nodes(op="call_function", target=aten.copy.default):
        old, new = node.args[:2]
        value = new
        with module.graph.inserting_before(node):
            if _meta(new).dtype != _meta(old).dtype:
                value = _made(
                    node, aten._to_copy.default, (value,), {"dtype": _meta(old).dtype}, _meta(new).to(_meta(old).dtype)
                )
            if str(_meta(new).shape) != str(_meta(old).shape):
                value = _made(node, aten.expand_as.default, (value, old), {}, _meta(node))
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
    module.recompile()


def _made(node: fx.Node, target: Any, args: tuple, kwargs: dict[str, Any], value: Tensor) -> fx.Node:
    made = node.graph.call_function(target, args, kwargs)
    made.meta = {**node.meta, "val": value}
    return made


def _meta(node: fx.Node) -> Tensor:
    return node.meta["val"]
