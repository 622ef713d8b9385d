"""Take positions out of a graph: smaller parameters, and every size constant put right.

The labels say which positions of every value stay, so each size that an operator spells out is recomputed, never guessed.
Numbers that are not sizes (a scale of 1 / sqrt(width), a mean's divisor) keep their old value, so that removing a position is
the same as zeroing it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor.errors import ModelError
from tersor.graph.arguments import bound, operator_name, write
from tersor.graph.dependency import Dependency, flat_axes
from tersor.graph.labels import Axis
from tersor.graph.model import Model
from tersor.graph.rules_elementwise import reduced_axes
from tersor.graph.trace import SMALL, Axes

aten = torch.ops.aten
Args = Mapping[str, Any]


@dataclass
class Cut:
    """One removal under way: `old` nodes carry the labels, `new` nodes are edited."""

    dependency: Dependency
    dead: frozenset[int]
    model: Model
    _live: dict[Axis, list[int]] = field(default_factory=dict)

    def live(self, axis: Axis) -> list[int]:
        if axis not in self._live:
            self._live[axis] = self.dependency.live(axis, self.dead)
        return self._live[axis]

    def changed(self, axis: Axis) -> bool:
        return len(self.live(axis)) != len(axis)

    def axes(self, old: fx.Node) -> Axes:
        return self.dependency.walk.axes(old)

    def size(self, old: fx.Node, at: int, axis: Axis, new: fx.Node) -> int | fx.Node:
        """How long `axis` is now; an expression of the batch where the axis follows it."""
        count = len(self.live(axis))
        if not self._follows(old, at):
            return count
        if count % SMALL:
            raise ModelError(
                f"Axis {at} of node {old.name} mixes the batch with what was to be removed in a way that no size can express; "
                "leave that group whole."
            )
        with new.graph.inserting_before(new):
            batch = new.graph.call_function(aten.sym_size.int, (self._input(new.graph), 0))
            return new.graph.call_function(operator.mul, (batch, count // SMALL))

    def _follows(self, old: fx.Node, at: int) -> bool:
        shape = self.dependency.walk.small[old.name]
        return isinstance(shape[at], int) and self.dependency.walk.symbolic(old, at)

    def _input(self, graph: fx.Graph) -> fx.Node:
        return next(
            node
            for node in graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].ndim
        )


Edit = Callable[[Cut, fx.Node, fx.Node, Args], None]
"""`edit(cut, old, new, arguments of new)`: put the constants of one node right."""


def resize(cut: Cut) -> None:
    """Shrink the tensors of `cut.model` and put the constants of its graph right, in place."""
    _check(cut)
    pairs = list(zip(_labelled(cut), list(cut.model.graph.nodes), strict=True))
    for old, new in pairs:
        _apply(cut, old, new)
    for old, new in pairs:
        _refresh(cut, old, new)
    resize_tensors(cut)
    cut.model.graph.eliminate_dead_code()
    cut.model.graph.lint()
    cut.model.module.recompile()


def resize_tensors(cut: Cut) -> None:
    """Index every parameter and buffer by what stays of it; tied ones stay tied."""
    done: dict[int, Tensor] = {}
    for name, tensor in list(cut.model.tensors()):
        axes = cut.dependency.tensors.get(name) or _alias(cut, name)
        if axes is None or not any(map(cut.changed, axes)):
            continue
        if id(tensor) not in done:
            done[id(tensor)] = _indexed(tensor, [cut.live(axis) for axis in axes])
        owner, _, leaf = name.rpartition(".")
        setattr(cut.model.module.get_submodule(owner), leaf, done[id(tensor)])


def zero_tensors(cut: Cut) -> None:
    """Zero every removed part of every parameter and buffer, in place; shapes stay."""
    with torch.no_grad():
        for name, axes in cut.dependency.tensors.items():
            tensor = cut.model.tensor(name)
            for at, axis in enumerate(axes):
                gone = sorted(set(range(len(axis))) - set(cut.live(axis)))
                if gone:
                    tensor.index_fill_(at, torch.tensor(gone), 0)


def _alias(cut: Cut, name: str) -> Axes | None:
    tensor = cut.model.tensor(name)
    for other, axes in cut.dependency.tensors.items():
        if cut.model.tensor(other) is tensor:
            return axes
    return None


def _indexed(tensor: Tensor, live: list[list[int]]) -> Tensor:
    value = tensor.detach()
    for at, kept in enumerate(live):
        if len(kept) < value.shape[at]:
            value = value.index_select(at, torch.tensor(kept))
    value = value.contiguous()
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _labelled(cut: Cut) -> list[fx.Node]:
    return list(next(iter(cut.dependency.walk.values)).graph.nodes)


def _check(cut: Cut) -> None:
    for node, value in cut.dependency.walk.values.items():
        for axis in flat_axes(value):
            if axis and not cut.live(axis):
                raise ModelError(f"Nothing would be left of an axis of node {node.name}; keep more blocks.")


def _apply(cut: Cut, old: fx.Node, new: fx.Node) -> None:
    if new.op != "call_function":
        return
    if new.target is aten.sym_size.int:
        _size_before(cut, old, new)
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


# ------------------------------------------------------------------------------------------------------------- edits


def _size_before(cut: Cut, old: fx.Node, new: fx.Node) -> None:
    """A size that was read from a value keeps its old meaning; the sizes made of it are rewritten where they are used."""
    source, at = old.args
    axes = cut.axes(source)
    axis = axes[at]  # type: ignore[index]
    if not cut.changed(axis):
        return
    with new.graph.inserting_before(new):
        batch = new.graph.call_function(aten.sym_size.int, (cut._input(new.graph), 0))
        before = new.graph.call_function(operator.mul, (batch, len(axis) // SMALL))
    new.replace_all_uses_with(before)


def _whole_shape(name: str) -> Edit:
    """Sizes that spell out the result's whole shape."""

    def edit(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
        axes = cut.axes(old)
        sizes = [
            size if size == -1 or not cut.changed(axis) else cut.size(old, at, axis, new)
            for at, (size, axis) in enumerate(zip(a[name], axes, strict=True))
        ]
        write(new, name, sizes)

    return edit


def _unflatten(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    axes = cut.axes(old)
    at = a["dim"] % len(cut.axes(old.all_input_nodes[0]))
    made = range(at, at + len(a["sizes"]))
    write(new, "sizes", [s if s == -1 else cut.size(old, d, axes[d], new) for d, s in zip(made, a["sizes"], strict=True)])


def _split(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    parts = cut.dependency.walk.values[old]
    source = old.all_input_nodes[0]
    at = a["dim"] % len(cut.axes(source))
    if not cut.changed(cut.axes(source)[at]):
        return
    sizes = [len(cut.live(axes[at])) for axes in parts]  # type: ignore[union-attr,index]
    new.target = aten.split_with_sizes.default
    new.args, new.kwargs = (new.all_input_nodes[0], sizes, at), {}


def _slice(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    source = old.all_input_nodes[0]
    axes = cut.axes(source)
    at = a["dim"] % len(axes)
    if not cut.changed(axes[at]):
        return
    start, end = (a["start"] or 0), a["end"]
    start = max(start + len(axes[at]), 0) if start < 0 else start
    if a["step"] > 1:
        return  # the phase is whole, so the first position and the step stay
    length = len(cut.axes(old)[at])
    before = len(cut.live(axes[at][:start]))
    write(new, "start", before)
    if isinstance(end, int):
        write(new, "end", before + len(cut.live(axes[at][start : start + length])))


def _narrow(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    axes = cut.axes(old.all_input_nodes[0])
    at = a["dim"] % len(axes)
    if cut.changed(axes[at]):
        start = a["start"] % len(axes[at])
        write(new, "start", len(cut.live(axes[at][:start])))
        write(new, "length", len(cut.live(cut.axes(old)[at])))


def _pad(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    x, out = cut.axes(old.all_input_nodes[0]), cut.axes(old)
    widths = list(a["pad"])
    for i in range(len(widths) // 2):
        at = len(x) - 1 - i
        before, after = widths[2 * i], widths[2 * i + 1]
        size = len(x[at])
        widths[2 * i] = len(cut.live(out[at][:before])) if before >= 0 else -len(cut.live(x[at][:-before]))
        widths[2 * i + 1] = (
            len(cut.live(out[at][len(out[at]) - after :])) if after >= 0 else -len(cut.live(x[at][size + after :]))
        )
    write(new, "pad", widths)


def _inner(name: str) -> Edit:
    """A count that is the length of the node's own hidden axis: groups, repeats."""

    def edit(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
        inner = cut.dependency.walk.inner.get(old)
        if inner is not None:
            write(new, name, len(cut.live(inner)))

    return edit


def _repeat_interleave(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    _inner("repeats")(cut, old, new, a)
    write(new, "output_size", None)


def _repeat(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """Only copies of a single position can go; whole copies stay."""
    axes, x = cut.axes(old), cut.axes(old.all_input_nodes[0])
    lead = len(axes) - len(x)
    times = [
        cut.size(old, at, axis, new) if (at < lead or len(x[at - lead]) == 1) and cut.changed(axis) else count
        for at, (axis, count) in enumerate(zip(axes, a["repeats"], strict=True))
    ]
    write(new, "repeats", times)


def _normalized(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    count = len(a["normalized_shape"])
    write(new, "normalized_shape", [len(cut.live(axis)) for axis in cut.axes(old.all_input_nodes[0])[-count:]])


def _native_group_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    _inner("group")(cut, old, new, a)
    write(new, "C", len(cut.live(cut.axes(old.all_input_nodes[0])[1])))


def _rms_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """`x / sqrt(sum / N + eps)`, with N the width before, from a norm that divides by N', the width now."""
    count = len(a["normalized_shape"])
    axes = cut.axes(old.all_input_nodes[0])[-count:]
    ratio = prod(map(len, axes)) / prod(len(cut.live(axis)) for axis in axes)
    _normalized(cut, old, new, a)
    if ratio == 1:
        return
    eps = a["eps"] if a["eps"] is not None else torch.finfo(new.meta["val"].dtype).eps
    write(new, "eps", eps * ratio)
    _scaled(new, sqrt(ratio))


def _mean(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """The divisor stays what it was."""
    x = cut.axes(old.all_input_nodes[0])
    over = reduced_axes(len(x), a)
    ratio = prod(len(cut.live(x[d])) for d in over) / prod(len(x[d]) for d in over)
    if ratio != 1:
        _scaled(new, ratio)


def _scaled(new: fx.Node, factor: float) -> None:
    users = list(new.users)
    with new.graph.inserting_after(new):
        scaled = new.graph.call_function(aten.mul.Tensor, (new, factor))
    scaled.meta = {k: v for k, v in new.meta.items() if k in ("val", "nn_module_stack", "stack_trace")}
    for user in users:
        user.replace_input_with(new, scaled)


def _attention(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """The scale of the old width."""
    if a.get("scale") is None:
        write(new, "scale", 1 / sqrt(len(cut.axes(old.all_input_nodes[0])[-1])))


EDITS: dict[str, Edit] = {
    **{f"aten.{name}": _whole_shape("size") for name in ["view", "_unsafe_view", "expand", "zeros", "ones", "full", "empty"]},
    **{f"aten.{name}": _whole_shape("size") for name in ["new_zeros", "new_ones", "new_full", "new_empty", "broadcast_to"]},
    "aten.reshape": _whole_shape("shape"),
    "aten.unflatten": _unflatten,
    **{f"aten.{name}": _split for name in ["split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"]},
    "aten.slice": _slice,
    "aten.narrow": _narrow,
    "aten.constant_pad_nd": _pad,
    "aten.pad": _pad,
    **{f"aten.{name}": _inner("groups") for name in ["conv1d", "conv2d", "conv3d", "convolution", "channel_shuffle"]},
    **{f"aten.conv_transpose{rank}d": _inner("groups") for rank in (1, 2, 3)},
    "aten.repeat_interleave": _repeat_interleave,
    "aten.repeat": _repeat,
    "aten.group_norm": _inner("num_groups"),
    "aten.native_group_norm": _native_group_norm,
    "aten.layer_norm": _normalized,
    "aten.native_layer_norm": _normalized,
    "aten.rms_norm": _rms_norm,
    "aten.mean": _mean,
    "aten.scaled_dot_product_attention": _attention,
}
