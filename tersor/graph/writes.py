"""What a captured forward pass writes into its inputs and buffers.

`torch.export` carries such writes to the end of the graph, as copies into what was written. A write into an input is the
caller's business and goes; so does one into a buffer that no output reads. Where an output does depend on what the last call
left behind, the network has a state, which nothing here can carry: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from tersor.errors import ModelError
from tersor.graph import lines

aten = torch.ops.aten


def drop_writes(module: fx.GraphModule, line_of: Callable[[str], str]) -> None:
    """Remove, in place, every write into an input or a buffer. Raises `ModelError` that names the buffer and the user's line
    where the outputs of the next call would depend on it; `line_of` a name knows the line, else the graph."""
    written: dict[str, fx.Node] = {}
    for node in reversed(list(module.graph.nodes)):
        if node.op != "call_function" or node.target is not aten.copy_.default:
            continue
        into, value = node.args[0], node.args[1]
        assert isinstance(into, fx.Node)
        assert isinstance(value, fx.Node)
        if into.op == "get_attr":
            written[str(into.target)] = value
        elif into.op != "placeholder":
            continue
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, value in written.items():
        if name in read:
            raise ModelError(_stateful(module, name, line_of(name) or lines.of_node(value)))
    module.recompile()


def _stateful(module: fx.GraphModule, name: str, line: str) -> str:
    at = f" at {line}" if line else ""
    readers = (user for each in module.graph.nodes if each.target == name for user in each.users)
    if any("batch_norm" in str(reader.target) for reader in readers):
        return (
            f"The model normalizes with batch statistics at inference, and updates '{name}'{at}; an item's result would "
            "depend on the other items of its batch: make it depend on self.training."
        )
    parameters = {each for each, _ in module.named_parameters(remove_duplicate=False)}
    kind = "parameter" if name in parameters else "buffer"
    return (
        f"The model writes its {kind} '{name}' when it predicts{at}, and its outputs depend on what the last call left "
        "there; make the forward pass independent of earlier calls, for example by an argument that holds the state."
    )
