"""Which ATen operators apply a matrix, and where its arguments stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
_TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}


def matrix_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node | None, dict[str, Any] | None] | None:
    """(weight, bias, convolution settings) where `node` is a linear or convolution with parameters, else None."""
    target, weight = node.target, weight_of(node)
    bias = argument(node, 2, "bias", None)
    if weight is None or weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
        return None
    if target is aten.linear.default:
        return weight, bias, None
    transposed = target in _TRANSPOSED
    rank = (_TRANSPOSED if transposed else _CONVOLUTIONS)[target]
    groups_at, dilation_at = (6, 7) if transposed else (6, 5)
    if not isinstance(argument(node, groups_at, "groups", 1), int):  # as many groups as items
        return None
    return (
        weight,
        bias,
        {
            "kernel": tuple(weight.meta["val"].shape[2:]) if "val" in weight.meta else _kernel(node, weight),
            "stride": _tuple(argument(node, 3, "stride", 1), rank),
            "padding": _tuple(argument(node, 4, "padding", 0), rank),
            "dilation": _tuple(argument(node, dilation_at, "dilation", 1), rank),
            "groups": argument(node, groups_at, "groups", 1),
            "transposed": transposed,
            "output_padding": _tuple(argument(node, 5, "output_padding", 0), rank) if transposed else (),
        },
    )


def weight_of(node: fx.Node) -> fx.Node | None:
    """The weight that `node` applies where it is a linear or convolution, parameter or not, else None."""
    known = node.target in _CONVOLUTIONS or node.target in _TRANSPOSED or node.target is aten.linear.default
    return argument(node, 1, "weight", None) if node.op == "call_function" and known else None


def constants(module: fx.GraphModule) -> dict[fx.Node, bool]:
    """The values that no call changes: made of parameters and constants alone, without chance. True: of a parameter, too."""
    found: dict[fx.Node, bool] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found[node] = isinstance(tensor_of(module, str(node.target)), nn.Parameter)
        elif node.op == "call_function" and not _by_chance(node) and all(e in found for e in node.all_input_nodes):
            found[node] = any(found[each] for each in node.all_input_nodes)
    return found


def tensor_of(module: nn.Module, name: str) -> Any:
    """What a module holds under a dotted name."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _by_chance(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _kernel(node: fx.Node, weight: fx.Node) -> tuple[int, ...]:
    return tuple(tensor_of(node.graph.owning_module, str(weight.target)).shape[2:])


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)
