"""Take positions out of a model: smaller parameters, and every size constant put right.

The labels say which positions of every value stay, so nothing is guessed and nothing is traced again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.errors import ModelError
from tersor.graph.arguments import bound, operator_name
from tersor.graph.cut import Cut, aten
from tersor.graph.edits import EDITS, size_before
from tersor.graph.trace import flat_axes

Storage = tuple[int, tuple[int, ...]]


def resize(cut: Cut) -> None:
    """Shrink the tensors of `cut.model` and put the constants of its graph right, in place."""
    _check(cut)
    pairs = list(zip(_labelled(cut), list(cut.model.graph.nodes), strict=True))
    for old, new in pairs:
        _apply(cut, old, new)
    for old, new in pairs:
        _refresh(cut, old, new)
    resize_tensors(cut)
    _relax_views(cut.model.graph)
    cut.model.graph.eliminate_dead_code()
    cut.model.graph.lint()
    cut.model.module.recompile()


def resize_tensors(cut: Cut) -> None:
    """Index every parameter and buffer by what stays of it; tied ones stay tied."""
    labelled = {_storage(cut.model.tensor(name)): axes for name, axes in cut.dependency.tensors.items()}
    smaller: dict[Storage, Tensor] = {}
    everything = dict(cut.model.tensors()) | {name: cut.model.tensor(name) for name in cut.dependency.tensors}
    for name, tensor in everything.items():
        key = _storage(tensor)
        axes = labelled.get(key, ())
        if not any(map(cut.changed, axes)):
            continue
        if key not in smaller:
            smaller[key] = _indexed(tensor, [cut.live(axis) for axis in axes])
        owner, _, leaf = name.rpartition(".")
        setattr(cut.model.module.get_submodule(owner), leaf, smaller[key])


def zero_tensors(cut: Cut) -> None:
    """Zero every removed part of every parameter and buffer; shapes stay."""
    for name, axes in cut.dependency.tensors.items():
        gone = {at: sorted(set(range(len(axis))) - set(cut.live(axis))) for at, axis in enumerate(axes)}
        if not any(gone.values()):
            continue
        value = cut.model.tensor(name).detach()
        for at, places in gone.items():
            value = value.index_fill(at, torch.tensor(places, dtype=torch.long, device=value.device), 0)
        cut.model.assign(name, value)


def _storage(tensor: Tensor) -> Storage:
    return tensor.data_ptr(), tuple(tensor.shape)


def _indexed(tensor: Tensor, live: list[list[int]]) -> Tensor:
    value = tensor.detach()
    for at, kept in enumerate(live):
        if len(kept) < value.shape[at]:
            value = value.index_select(at, torch.tensor(kept, device=value.device))
    value = value.contiguous()
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _labelled(cut: Cut) -> list[fx.Node]:
    return list(next(iter(cut.dependency.walk.values)).graph.nodes)


def _relax_views(graph: fx.Graph) -> None:
    """Operators may choose other strides at other widths, where a view would be refused and a reshape copies."""
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _check(cut: Cut) -> None:
    for node, value in cut.dependency.walk.values.items():
        for axis in flat_axes(value):
            if axis and not cut.live(axis):
                raise ModelError(f"Nothing would be left of an axis of node {node.name}; keep more blocks.")


def _apply(cut: Cut, old: fx.Node, new: fx.Node) -> None:
    if new.op != "call_function":
        return
    if new.target is aten.sym_size.int:
        size_before(cut, old, new)
        return
    touched = [axis for node in (old, *old.all_input_nodes) for axis in flat_axes(cut.dependency.walk.values.get(node))]
    if old in cut.dependency.walk.inner:
        touched.append(cut.dependency.walk.inner[old])
    edit = EDITS.get(operator_name(new))
    if edit is not None and any(map(cut.changed, touched)):
        edit(cut, old, new, bound(new))


def _refresh(cut: Cut, old: fx.Node, new: fx.Node) -> None:
    """The recorded shape of a value, so that readers of the graph see the new one."""
    new.meta["val"] = _refreshed(cut, cut.dependency.walk.values.get(old), new.meta.get("val"))
    if new.meta["val"] is None:
        del new.meta["val"]


def _refreshed(cut: Cut, value: Any, recorded: Any) -> Any:
    if value is None or recorded is None or not any(map(cut.changed, flat_axes(value))):
        return recorded
    if isinstance(recorded, tuple | list):
        return type(recorded)(_refreshed(cut, v, r) for v, r in zip(value, recorded, strict=True))
    shape = [
        size if not cut.changed(axis) else size * len(cut.live(axis)) // len(axis)
        for size, axis in zip(recorded.shape, value, strict=True)
    ]
    return recorded.new_empty(shape)
