"""Weights that a network computes from its parameters in every call, such as those of a weight norm, become parameters.

Only then can a weight be pruned or put on a grid. Nothing else changes: the network computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.graph.operators import aten, weight_of


def settle(module: fx.GraphModule) -> None:
    """Compute, in place, every weight of a linear or convolution that depends on nothing but parameters of its own."""
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)  # it computes nothing, and would be one more reader
    for node in list(module.graph.nodes):
        weight = weight_of(node)
        if weight is not None and weight.op == "call_function":
            ancestors = _ancestors(weight)
            inside = [each for each in module.graph.nodes if each in ancestors]
            if _alone(module, weight, inside):
                _replace(module, weight, inside)


def _alone(module: fx.GraphModule, weight: fx.Node, inside: Sequence[fx.Node]) -> bool:
    """Whether `inside`, which leads to `weight`, is parameters, and functions without chance, that nothing else reads."""
    leaves = {each.target for each in inside if each.op == "get_attr"}
    elsewhere = {each.target for each in module.graph.nodes if each.op == "get_attr" and each not in inside}
    users = {user for each in inside if each is not weight for user in each.users}
    pure = all(each.op == "get_attr" or (each.op == "call_function" and not _by_chance(each)) for each in inside)
    return pure and bool(leaves) and users.issubset(inside) and leaves.isdisjoint(elsewhere)


def _by_chance(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        new = [each for each in waiting.pop().all_input_nodes if each not in found]
        found.update(new)
        waiting.extend(new)
    return found


def _replace(module: fx.GraphModule, weight: fx.Node, inside: Sequence[fx.Node]) -> None:
    leaves = list(dict.fromkeys(str(each.target) for each in inside if each.op == "get_attr"))
    value = _value(module, inside)
    for each in leaves:
        _delete(module, each)
    name = _free(module, leaves[0])
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    with module.graph.inserting_before(weight):
        settled = module.graph.get_attr(name)
    settled.meta = {key: weight.meta[key] for key in ("val",) if key in weight.meta}
    weight.replace_all_uses_with(settled)
    for each in reversed(inside):
        module.graph.erase_node(each)


@torch.no_grad()
def _value(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> Tensor:
    """Of the last of the nodes, which stand in the order in which they are computed."""
    known: dict[fx.Node, Any] = {}
    for each in nodes:
        if each.op == "get_attr":
            known[each] = _tensor(module, str(each.target))
        else:
            args, kwargs = fx.node.map_arg((each.args, each.kwargs), known.__getitem__)
            known[each] = each.target(*args, **kwargs)
    return known[nodes[-1]].detach().clone().contiguous()


def _free(module: fx.GraphModule, leaf: str) -> str:
    """A name for the weight of the layer whose parameter is called `leaf`."""
    place, parametrised, rest = leaf.partition(".parametrizations.")
    owner, last = (place, rest.partition(".")[0]) if parametrised else (leaf.rpartition(".")[0], "weight")
    names = (".".join(filter(None, (owner, word))) for word in _words(last))
    return next(name for name in names if not _has(module, name))


def _words(word: str) -> Iterator[str]:
    yield word
    number = 1
    while True:
        number += 1
        yield f"{word}_{number}"


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _has(module: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return hasattr(module.get_submodule(owner), leaf)


def _delete(module: nn.Module, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(owner), leaf)
