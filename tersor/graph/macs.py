"""Multiply-accumulates, counted by one rule for every tool that is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, fx

from tersor.graph.arguments import MATMUL, bound, factors, operator_name
from tersor.graph.model import Model
from tersor.graph.operators import matrix_arguments, weight_of
from tersor.graph.products import spelled
from tersor.graph.recurrent import recurrence_of


def macs(model: Model) -> dict[str, int]:
    """Multiply-accumulates per item of every matrix, by the weight's name without `.weight`.

    A matrix of r x c values that is applied at p positions costs p * r * c; biases, norms and attention scores are not
    counted (see `products`). Positions are those of the example, of a recurrent layer its steps. A matrix that is used twice
    counts twice.
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


def products(model: Model) -> dict[str, int]:
    """Multiply-accumulates per item of the products that are no layers, by operator: of activations with each other, such as
    attention scores, and of parameters that are left alone. No budget counts them."""
    counted: dict[str, int] = {}
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    items = len(model.example[0])

    def count(node: fx.Node, value: Any) -> Any:
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, Tensor):
            shapes[node] = tuple(first.shape)
            if node.op == "call_function" and matrix_arguments(node) is None and recurrence_of(node) is None:
                cost = _cost(node, shapes)
                if cost:
                    name = operator_name(node)
                    counted[name] = counted.get(name, 0) + cost // items
        return value

    model.interpret(model.example, count)
    return counted


def _one_after_the_other(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of an einsum of several operands, each taken to what those before it have given."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    operands = inputs.split(",")
    sizes = {
        letter: size
        for each, shape in zip(operands, shapes, strict=True)
        for letter, size in zip(each, shape, strict=True)
    }
    here, cost = set(operands[0]), 0
    for number, each in enumerate(operands[1:], 2):
        both = here | set(each)
        cost += prod(sizes[letter] for letter in both)
        here = both & set(out).union(*operands[number:])
    return cost


def _cost(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one product, of the whole batch; 0 where a node multiplies no matrices."""
    a, name, made = bound(node), operator_name(node), prod(shapes[node])
    weight = weight_of(node)
    if weight is not None:
        outwards = name.startswith("aten.conv_transpose")
        return prod(shapes[node.args[0]] if outwards else shapes[node]) * prod(shapes[weight][1:])
    if name in MATMUL or name in ("aten.addmm", "aten.baddbmm", "aten.mv", "aten.addmv", "aten.inner"):
        return made * shapes[factors(a)[0]][-1]
    if name == "aten.scaled_dot_product_attention":
        keys = shapes[a["key"]][-2]
        return (prod(shapes[a["query"]]) + made) * keys
    if name == "aten.einsum" and len(a["tensors"]) == 2:
        found = spelled(a["equation"], [len(shapes[each]) for each in a["tensors"]])
        if found is not None:
            pairs = zip(found[0] + found[1], sum((shapes[each] for each in a["tensors"]), ()), strict=True)
            return prod(dict(pairs).values())
    if name == "aten.einsum" and "." not in a["equation"]:
        return _one_after_the_other(a["equation"], [shapes[each] for each in a["tensors"]])
    if name == "aten.tensordot":
        return made * prod(shapes[a["self"]][d] for d in a["dims_self"])
    if name == "aten.bilinear":
        return made * prod(shapes[a["weight"]][1:])
    if "params" in a and name in ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"):
        positions = made // shapes[node][-1]
        return positions * sum(prod(shapes[each]) for each in a["params"] if len(shapes[each]) == 2)
    return 0
