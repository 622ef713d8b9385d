"""Weights that a network computes from its parameters in every call, such as those of a weight norm, become parameters.

Only then can a weight be pruned or put on a grid. Nothing else changes: the network computes the same. What is only looked at
differently (turned, cut into pieces that do not overlap) keeps its name, pieces with a number behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.errors import ModelError
from tersor.graph.arguments import LOOKS, operator_name, write
from tersor.graph.emit import emit
from tersor.graph.operators import argument, aten, constants, matrix_arguments, tensor_of, weight_of

OURS = "_codes"  # ends the names of what `quantize` packs
_CODES = (torch.int8, torch.uint8, torch.int32)  # what weights of few bits are kept in, packed or not
_TURNS = frozenset(f"aten.{name}" for name in ("permute", "transpose", "swapaxes", "t", "numpy_T"))


def settle(module: fx.GraphModule) -> None:
    """Compute, in place, every weight and bias that depends on nothing but parameters of its own."""
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)  # it computes nothing, and would be one more reader
    _join(module)
    module.graph.eliminate_dead_code()
    fixed = constants(module)
    for node in list(module.graph.nodes):
        for weight, word in _parameters_of(node):
            if weight.op == "call_function" and weight in fixed and weight.users:
                _settle(module, weight, word)
    for node in list(module.graph.nodes):
        _part(node)
    for node in list(module.graph.nodes):
        if weight_of(node) is not None and node.args[0].op == "get_attr":  # learned queries: an activation like others
            node.update_arg(0, emit(node, aten.alias.default, node.args[0]))
    _apply_in_one_way(module)


def _apply_in_one_way(module: fx.GraphModule) -> None:
    """A weight that a convolution and its transpose apply, or in groups and not, is a layer where it is applied first; there is
    no one matrix for the other. One that is no float32, such as those of an autocast, is none: what is chosen for it is."""
    known: dict[int, tuple[Any, int]] = {}
    for node in list(module.graph.nodes):
        found = matrix_arguments(node)
        if found is not None:
            weight, _, convolution = found
            way = (node.target, convolution["groups"] if convolution else 1)
            held = tensor_of(module, str(weight.target))
            if held.dtype != torch.float32 or known.setdefault(held.data_ptr(), way) != way:
                write(node, "weight", emit(node, aten.alias.default, weight))


def _part(node: fx.Node) -> None:
    """A bias that is no parameter is added afterwards: the matrix is a layer all the same."""
    weight, bias = weight_of(node), argument(node, 2, "bias", None)
    if weight is None or weight.op != "get_attr" or bias is None or bias.op == "get_attr" or "val" not in weight.meta:
        return
    places = weight.meta["val"].ndim - 2
    added = emit(node, aten.reshape.default, bias, [-1, *[1] * places]) if places else bias
    settings = {key: value for key, value in node.kwargs.items() if key != "bias"}
    value = emit(node, node.target, *node.args[:2], None, *node.args[3:], **settings)
    node.replace_all_uses_with(emit(node, aten.add.Tensor, value, added))
    node.graph.erase_node(node)


def without_gradient(module: fx.GraphModule) -> None:
    """Make buffers, in place, of parameters that are no real numbers, such as tables of positions: nothing trains or rounds
    them."""
    for name, tensor in list(module.named_parameters(remove_duplicate=False)):
        if not tensor.is_floating_point():
            owner, _, leaf = name.rpartition(".")
            place = module.get_submodule(owner)
            delattr(place, leaf)
            place.register_buffer(leaf, tensor.detach())


def _parameters_of(node: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """What a linear, a convolution or an embedding applies, and what that is called."""
    weight = argument(node, 0, "weight", None) if node.target is aten.embedding.default else weight_of(node)
    bias = argument(node, 2, "bias", None) if weight_of(node) is not None else None
    for each, word in ((weight, "weight"), (bias, "bias")):
        if isinstance(each, fx.Node):
            yield each, word


def _settle(module: fx.GraphModule, weight: fx.Node, word: str) -> None:
    inside = _behind(module, [weight])
    pieces = _pieces(module, inside)
    own = _own(module, inside)
    if weight in pieces:
        _cut(module, pieces)
    elif _alone(module, weight, own):
        _refuse_codes(module, weight, inside, word)
        _replace(module, weight, inside, own, word)


def _own(module: fx.GraphModule, inside: Sequence[fx.Node]) -> list[fx.Node]:
    """Those of the nodes that depend on a parameter; all where none does. Buffers may be read by others as well."""
    found: dict[fx.Node, None] = {}
    for each in inside:
        held = each.op == "get_attr" and isinstance(tensor_of(module, str(each.target)), nn.Parameter)
        if held or not found.keys().isdisjoint(each.all_input_nodes):
            found[each] = None
    return list(found or inside)


def _refuse_codes(module: fx.GraphModule, weight: fx.Node, inside: Sequence[fx.Node], word: str) -> None:
    """Raise `ModelError` where a weight is computed from whole numbers and a few real ones: somebody else has quantized it.
    Archives that `quantize` wrote are taken as the float models that they compute like."""
    leaves = {str(each.target) for each in inside if each.op == "get_attr"}
    held = {name: tensor_of(module, name) for name in leaves}
    size = prod(_shape(weight))
    real = sum(t.numel() for t in held.values() if t.is_floating_point() or t.is_complex())
    codes = [name for name, t in held.items() if t.dtype in _CODES and 8 * t.nbytes >= size > 2 * real]
    codes = [name for name in codes if not name.endswith(OURS)]
    if word == "weight" and codes:
        raise ModelError(
            f"The model is already quantized: it computes a weight from '{codes[0]}', which holds "
            f"{str(held[codes[0]].dtype).removeprefix('torch.')}; bring the float model that it was made from."
        )


def _behind(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes and all that they are computed from, in order."""
    found, waiting = set(nodes), list(nodes)
    while waiting:
        new = [each for each in waiting.pop().all_input_nodes if each not in found]
        found.update(new)
        waiting.extend(new)
    return [each for each in module.graph.nodes if each in found]


def _join(module: fx.GraphModule) -> None:
    """Let what is computed several times from parameters be computed once, so that all who read it have one parameter."""
    known: dict[tuple[str, str, str], fx.Node] = {}
    for node in constants(module):
        if _turns(node) and _turns(node.all_input_nodes[0]):
            node.replace_all_uses_with(node.all_input_nodes[0].all_input_nodes[0])
            continue
        same = known.setdefault((str(node.target), repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            module.graph.erase_node(node)


def _turns(node: fx.Node) -> bool:
    """Whether a node swaps the two axes of a matrix."""
    name = operator_name(node)
    if len(_shape(node)) != 2 or name not in _TURNS:
        return False
    dims = [d % 2 for d in (node.args[1] if name == "aten.permute" else node.args[1:])]
    return dims == [1, 0] if name == "aten.permute" else dims in ([], [0, 1], [1, 0])


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape) if isinstance(node.meta.get("val"), Tensor) else ()


def _pieces(module: fx.GraphModule, inside: Sequence[fx.Node]) -> list[fx.Node]:
    """Where `inside` only looks at one parameter: all values, made of it in this way, that others read.

    Nothing where a part of it is among several of them, or where it is read as it is as well.
    """
    leaves = [each for each in inside if each.op == "get_attr"]
    if len(leaves) != 1 or not _one_name(module, leaves[0]):
        return []
    leaf = leaves[0]
    tensor = tensor_of(module, str(leaf.target))
    places = torch.int32 if tensor.numel() < 2**31 else torch.int64
    known: dict[fx.Node, Any] = {leaf: torch.arange(tensor.numel(), dtype=places).reshape(tensor.shape)}
    ends: list[fx.Node] = []
    for node in module.graph.nodes:
        if node in known or known.keys().isdisjoint(node.all_input_nodes):
            continue
        if operator_name(node) in LOOKS and len(node.all_input_nodes) == 1:
            known[node] = _computed(node, known)
        else:
            ends += [each for each in node.all_input_nodes if each in known and each not in ends]
    if leaf in ends or not all(isinstance(known[each], Tensor) for each in ends):
        return []
    read = torch.zeros(tensor.numel(), dtype=torch.bool)
    for each in ends:
        if bool(read[known[each]].any()):
            return []
        read[known[each]] = True
    return ends


def _one_name(module: fx.GraphModule, leaf: fx.Node) -> bool:
    """Whether nothing in the graph reads the memory of `leaf` under another name."""
    where = tensor_of(module, str(leaf.target)).untyped_storage().data_ptr()
    for each in module.graph.nodes:
        if each.op == "get_attr" and each.target != leaf.target:
            other = tensor_of(module, str(each.target))
            if isinstance(other, Tensor) and other.untyped_storage().data_ptr() == where:
                return False
    return True


@torch.no_grad()
def _cut(module: fx.GraphModule, pieces: Sequence[fx.Node]) -> None:
    """Make a parameter of each piece of one."""
    inside = _behind(module, pieces)
    leaf = next(each for each in inside if each.op == "get_attr")
    name, tensor = str(leaf.target), tensor_of(module, str(leaf.target))
    known: dict[fx.Node, Any] = {leaf: tensor.detach()}
    for each in inside:
        if each is not leaf:
            known[each] = _computed(each, known)
    _delete(module, name)
    for index, piece in enumerate(pieces, 1):
        own = name if len(pieces) == 1 else _free(module, name, f"{name.rpartition('.')[2]}_{index}")
        _hold(module, piece, own, known[piece], isinstance(tensor, nn.Parameter))
    _erase(module, inside)


def _alone(module: fx.GraphModule, weight: fx.Node, own: Sequence[fx.Node]) -> bool:
    """Whether `own`, which lead to `weight`, are parameters, and functions of them, that nothing else reads."""
    leaves = {each.target for each in own if each.op == "get_attr"}
    elsewhere = {each.target for each in module.graph.nodes if each.op == "get_attr" and each not in own}
    users = {user for each in own if each is not weight for user in each.users}
    return bool(leaves) and users.issubset(own) and leaves.isdisjoint(elsewhere)


def _replace(
    module: fx.GraphModule, weight: fx.Node, inside: Sequence[fx.Node], own: Sequence[fx.Node], word: str
) -> None:
    leaves, others = (
        list(dict.fromkeys(str(n.target) for n in nodes if n.op == "get_attr")) for nodes in (own, inside)
    )
    value = _value(module, inside)
    for each in leaves:
        _delete(module, each)
    _hold(module, weight, _free(module, leaves[0], word), value, True)
    _erase(module, inside)
    read = {str(each.target) for each in module.graph.nodes if each.op == "get_attr"}
    for each in others:
        if each not in leaves and each not in read:
            _delete(module, each)


def _hold(module: fx.GraphModule, node: fx.Node, name: str, value: Tensor, trained: bool) -> None:
    """Let the module hold `value` as `name`, and all who read `node` read that."""
    owner, _, leaf = name.rpartition(".")
    value = value.detach().clone().contiguous()
    if trained:
        module.get_submodule(owner).register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        module.get_submodule(owner).register_buffer(leaf, value)
    with module.graph.inserting_before(node):
        held = module.graph.get_attr(name)
    held.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
    node.replace_all_uses_with(held)


def _erase(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
    for each in reversed(list(nodes)):
        if not each.users:
            module.graph.erase_node(each)


@torch.no_grad()
def _value(module: fx.GraphModule, nodes: Sequence[fx.Node]) -> Tensor:
    """Of the last of the nodes, which stand in the order in which they are computed."""
    known: dict[fx.Node, Any] = {}
    for each in nodes:
        known[each] = tensor_of(module, str(each.target)) if each.op == "get_attr" else _computed(each, known)
    return known[nodes[-1]]


def _computed(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    return node.target(*args, **kwargs)


def _free(module: fx.GraphModule, leaf: str, word: str) -> str:
    """A name such as `word` for the weight of the layer whose parameter is called `leaf`."""
    place, parametrised, rest = leaf.partition(".parametrizations.")
    owner, last = (place, rest.partition(".")[0]) if parametrised else (leaf.rpartition(".")[0], word)
    names = (".".join(filter(None, (owner, each))) for each in _words(last))
    return next(name for name in names if not _has(module, name))


def _words(word: str) -> Iterator[str]:
    yield word
    number = 1
    while True:
        number += 1
        yield f"{word}_{number}"


def _has(module: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return hasattr(module.get_submodule(owner), leaf)


def _delete(module: nn.Module, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    delattr(module.get_submodule(owner), leaf)
