"""What of a model is in no layer, and why: whoever makes a model smaller says what it did not touch.

A layer is a matrix (linear, convolution), an embedding or a recurrent layer: what `inspect` lists, with its bias.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor.graph.arguments import LOOKS, operator_name
from tersor.graph.model import Model
from tersor.graph.operators import weight_of
from tersor.graph.recurrent import recurrences
from tersor.site import Matrix, cells, groups, matrices, tables

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "native_batch_norm")
_COPIES = frozenset(("aten.expand", "aten.expand_as", "aten.to", "aten._to_copy", "aten.repeat"))


Where = tuple[int, tuple[int, ...]]
"""The memory that a tensor lies in, and its shape: the same for every name of it."""


@dataclass(frozen=True)
class LeftAlone:
    """Something that was not made smaller: a parameter or buffer, or a whole layer, and why."""

    name: str
    reason: str
    nbytes: int  # as it is


def left_alone(model: Model, spared: Mapping[str, str] | None = None) -> tuple[LeftAlone, ...]:
    """The parameters in no layer of `model`, and the buffers that it computes with; before them the layers `spared`, by name,
    each with the reason why it was not touched. Largest first."""
    why = spared or {}
    layers = {layer.name: layer for layer in layers_of(model)}
    found = [LeftAlone(name, why[name], _nbytes(model, layer)) for name, layer in layers.items() if name in why]
    return tuple(sorted([*found, *_outside(model)], key=lambda each: (-each.nbytes, each.name)))


EXCLUDED = "excluded by the user"


def layers_of(model: Model) -> Iterator[Matrix]:
    """Every layer, each name once: matrices, embeddings, recurrent layers."""
    yield from {m.name: m for m in (*matrices(model), *tables(model), *cells(model))}.values()


def unread(model: Model) -> set[str]:
    """The parameters that nothing in the forward pass reads."""
    readers = _readers(model)
    return {name for name, tensor in model.module.named_parameters() if not readers.get(_where(tensor))}


def unnarrowed(model: Model, names: Collection[str]) -> dict[str, str]:
    """The layers that none of the groups called `names` has an axis of, and why not."""
    found = groups(model)
    cut = {member.tensor for group in found if group.name in names for member in group.members}
    why: dict[str, str] = {}
    for group in found:
        refused = (group.refused or "").removeprefix("not prunable: ")
        for member in group.members:
            why.setdefault(member.tensor, refused or "its axes were not among those to prune")
    return {
        layer.name: why.get(layer.weight, "none of its axes can be pruned")
        for layer in layers_of(model)
        if layer.weight not in cut
    }


def _nbytes(model: Model, layer: Matrix) -> int:
    held = (model.tensor(name) for name in (layer.weight, layer.bias) if name is not None)
    return sum(t.numel() * t.element_size() for t in held)


def _outside(model: Model) -> Iterator[LeftAlone]:
    taken = {_where(model.tensor(name)) for name in _inside(model)}
    readers = _readers(model)
    read = [str(n.target) for n in model.graph.nodes if n.op == "get_attr" and isinstance(_held(model, n), Tensor)]
    for name in dict.fromkeys([*(n for n, _ in model.module.named_parameters()), *read]):
        tensor = model.tensor(name)
        if _where(tensor) not in taken and tensor.numel():
            taken.add(_where(tensor))
            what = "" if isinstance(tensor, nn.Parameter) else "a buffer, "
            reason = what + _reason(readers.get(_where(tensor), {}), bool(what))
            if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex()) and not what:
                kind = str(tensor.dtype).removeprefix("torch.")
                reason = f"computed in {kind}, where Tersor compresses what is computed in float32"
            yield LeftAlone(name, reason, tensor.numel() * tensor.element_size())


def _inside(model: Model) -> Iterator[str]:
    for layer in layers_of(model):
        yield from (name for name in (layer.weight, layer.bias) if name is not None)
    for matrix in matrices(model):  # one weight may be applied with several biases
        if matrix.bias is not None:
            yield matrix.bias
    for recurrence in recurrences(model):
        yield from (name for layer in recurrence.layers for cell in layer for name in cell.parameters)


def _readers(model: Model) -> dict[Where, dict[fx.Node, None]]:
    """What reads each parameter or buffer, under whatever name, or looks at a part of it and reads that."""
    found: dict[Where, dict[fx.Node, None]] = {}
    for node in model.graph.nodes:
        held = _held(model, node) if node.op == "get_attr" else None
        if isinstance(held, Tensor):
            waiting = list(node.users)
            ends = found.setdefault(_where(held), {})
            while waiting:
                user = waiting.pop()
                if operator_name(user) in LOOKS | _COPIES:
                    waiting += user.users
                else:
                    ends[user] = None
    return found


def _reason(readers: Mapping[fx.Node, None], kept: bool) -> str:
    names = list(dict.fromkeys(sorted("the output" if r.op == "output" else operator_name(r) for r in readers)))
    if not names:
        return "nothing in the forward pass reads it"
    if all(any(norm in name for norm in _NORMS) for name in names):
        return "statistics of a norm" if kept else "a norm's scale or shift"
    if all(_pointwise(reader) for reader in readers):
        return "used elementwise, by " + _listed(names)
    if any(weight_of(reader) is not None for reader in readers):
        return f"not the weight of one layer: {_listed(names)} and others use it in different ways"
    if len(names) > 1:
        return f"used by different operators: {_listed(names)}"
    return f"used in {names[0]}, which Tersor does not compress"


def _pointwise(reader: fx.Node) -> bool:
    return isinstance(reader.target, torch._ops.OpOverload) and torch.Tag.pointwise in reader.target.tags


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _held(model: Model, node: fx.Node) -> object:
    try:
        return model.tensor(str(node.target))
    except AttributeError:
        return None


def _where(tensor: Tensor) -> Where:
    return tensor.data_ptr(), tuple(tensor.shape)
