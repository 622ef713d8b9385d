"""New nodes in a captured graph, with what readers of a graph expect to find beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_WHERE = ("stack_trace", "nn_module_stack", "source_fn_stack")


def emit(before: fx.Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """A call of an operator in front of `before`, of which it takes the user's line; its shape is worked out
    where those of its arguments are known."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta.update({key: before.meta[key] for key in _WHERE if key in before.meta})
    if not all("val" in each.meta for each in node.all_input_nodes):
        return node
    values, words = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
    with torch.no_grad():
        node.meta["val"] = target(*values, **words)
    return node
