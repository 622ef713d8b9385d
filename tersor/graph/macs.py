"""Multiply-accumulates, counted by one rule for every tool that is compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from tersor.graph.model import Model
from tersor.graph.operators import matrix_arguments
from tersor.graph.recurrent import recurrence_of


def macs(model: Model) -> dict[str, int]:
    """Multiply-accumulates per item of every matrix, by the weight's name without `.weight`.

    A matrix of r x c values that is applied at p positions costs p * r * c; biases, norms and attention scores are not
    counted. Positions are those of the example, of a recurrent layer its steps. A matrix that is used twice counts twice.
    """
    counted: dict[str, int] = {}
    numel: dict[fx.Node, int] = {}
    items = len(model.example[0])

    def add(name: str, cost: int) -> None:
        counted[name] = counted.get(name, 0) + cost // items

    def count(node: fx.Node, value: Any) -> Any:
        recurrence = recurrence_of(node)
        if recurrence is not None:
            positions = value[0].numel() // value[0].shape[-1]  # items and steps
            for cell in (cell for layer in recurrence.layers for cell in layer):
                for name in cell.weights:
                    add(name, positions * model.tensor(name).numel())
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
            add(str(weight.target).removesuffix(".weight"), cost)
        if isinstance(value, Tensor):
            numel[node] = value.numel()
        return value

    model.interpret(model.example, count)
    return counted
