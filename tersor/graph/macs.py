"""Multiply-accumulates, counted by one rule for every tool that is compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from tersor.graph.model import Model
from tersor.graph.operators import matrix_arguments


def macs(model: Model) -> dict[str, int]:
    """Multiply-accumulates per item of every matrix, by the weight's name without `.weight`.

    A matrix of r x c values that is applied at p positions costs p * r * c; biases, norms and attention scores are not
    counted. Positions are those of the example. A matrix that is used twice counts twice.
    """
    counted: dict[str, int] = {}
    numel: dict[fx.Node, int] = {}
    items = len(model.example[0])

    def count(node: fx.Node, value: Any) -> Any:
        found = matrix_arguments(node)
        if found is not None and isinstance(value, Tensor):
            weight, _, convolution = found
            tensor = model.tensor(str(weight.target))
            if convolution is None:
                cost = value.numel() * tensor.shape[1]
            elif convolution["transposed"]:
                cost = numel[node.args[0]] * tensor[0].numel()
            else:
                cost = value.numel() * tensor[0].numel()
            name = str(weight.target).removesuffix(".weight")
            counted[name] = counted.get(name, 0) + cost // items
        if isinstance(value, Tensor):
            numel[node] = value.numel()
        return value

    model.interpret(model.example, count)
    return counted
