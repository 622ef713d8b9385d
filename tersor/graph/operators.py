"""Which ATen operators apply a matrix, and where its arguments stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

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
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        return None
    return (
        weight,
        bias,
        {
            "kernel": tuple(weight.meta["val"].shape[2:]) if "val" in weight.meta else _kernel(node, weight),
            "stride": _tuple(argument(node, 3, "stride", 1), rank),
            "padding": _tuple(padding, rank),
            "dilation": _tuple(argument(node, dilation_at, "dilation", 1), rank),
            "groups": argument(node, groups_at, "groups", 1),
            "transposed": transposed,
        },
    )


def weight_of(node: fx.Node) -> fx.Node | None:
    """The weight that `node` applies where it is a linear or convolution, parameter or not, else None."""
    known = node.target in _CONVOLUTIONS or node.target in _TRANSPOSED or node.target is aten.linear.default
    return argument(node, 1, "weight", None) if node.op == "call_function" and known else None


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _kernel(node: fx.Node, weight: fx.Node) -> tuple[int, ...]:
    module = node.graph.owning_module
    owner, _, leaf = str(weight.target).rpartition(".")
    return tuple(getattr(module.get_submodule(owner), leaf).shape[2:])


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)
