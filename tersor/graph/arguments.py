"""An ATen node's arguments by the names of its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

_LOOKS = """permute transpose t numpy_T swapaxes movedim view reshape _unsafe_view flatten unflatten split split_with_sizes
    unsafe_split chunk tensor_split unbind select slice narrow squeeze unsqueeze contiguous clone alias detach"""
LOOKS = frozenset(f"aten.{name}" for name in _LOOKS.split()) | {"getitem"}
"""Operators that give the values that they are given, or some of them, each once."""
MATMUL = frozenset(("aten.matmul", "aten.mm", "aten.bmm"))


def operator_name(node: fx.Node) -> str:
    """The operator without its overload, for example "aten.conv2d"; the target's own name for what is not ATen."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket)
    return getattr(target, "__name__", str(target))


def bound(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen node, defaults included."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {str(i): value for i, value in enumerate(node.args)}
    values = dict(node.kwargs)
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args):
            values[argument.name] = node.args[position]
        elif argument.name not in values:
            values[argument.name] = argument.default_value
    return values


def factors(a: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two factors among the arguments of a matrix product."""
    names = [name for name in a if name in ("mat1", "batch1", "mat", "mat2", "batch2", "vec", "other")]
    return (a[names[0]], a[names[1]]) if len(names) == 2 else (a["self"], a[names[0]])


def write(node: fx.Node, name: str, value: Any) -> None:
    """Give an ATen node another value for one argument."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    position = [argument.name for argument in target._schema.arguments].index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)
