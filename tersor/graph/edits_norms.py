"""How norms follow a removal: each goes on dividing by the width before, so that removing is the same as zeroing.

A root mean square needs only another epsilon and another gain. A centred norm (layer, group) also spreads its mean over
what was removed, which no such pair of numbers undoes: there the removed positions come back, as zeros, while the norm
looks, and are cut off again. Cost: two copies of the activation, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import fx

from tersor.graph.arguments import write
from tersor.graph.cut import Cut, Edit

aten = torch.ops.aten
Args = Mapping[str, Any]


def normalized(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """The shape that a norm is told to run over."""
    axes = _over(cut, old, a)
    write(new, "normalized_shape", [len(cut.live(axis)) for axis in axes])


def layer_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    axes = _over(cut, old, a)
    left = [len(cut.live(axis)) for axis in axes]
    missing = [len(axis) - n for axis, n in zip(axes, left, strict=True)]
    if not any(missing):
        return
    graph = new.graph
    with graph.inserting_before(new):
        x, weight, bias = (_padded(graph, a[name], missing) for name in ("input", "weight", "bias"))
        out = graph.call_function(aten.layer_norm.default, (x, a["normalized_shape"], weight, bias, a["eps"]))
        for back, size in zip(range(-len(left), 0), left, strict=True):
            out = graph.call_function(aten.slice.Tensor, (out, back, 0, size))
    new.replace_all_uses_with(out)


def rms_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """`x / sqrt(sum / N + eps)`, with N the width before, from a norm that divides by N', the width now."""
    axes = _over(cut, old, a)
    ratio = prod(map(len, axes)) / prod(len(cut.live(axis)) for axis in axes)
    normalized(cut, old, new, a)
    if ratio == 1:
        return
    eps = a["eps"] if a["eps"] is not None else torch.finfo(new.meta["val"].dtype).eps
    write(new, "eps", eps * ratio)
    if a["weight"] is None:
        scaled(new, sqrt(ratio))
        return
    with new.graph.inserting_before(new):
        write(new, "weight", new.graph.call_function(aten.mul.Tensor, (a["weight"], sqrt(ratio))))


def group_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """Whole groups just go; places inside every group come back as zeros while the norm looks."""
    axes, group = cut.axes(old.all_input_nodes[0]), cut.dependency.walk.inner[old]
    groups, channels = len(cut.live(group)), len(cut.live(axes[1]))
    places, before = channels // groups, len(axes[1]) // len(group)
    write(new, "num_groups", groups)
    if places == before:
        return
    graph, image = new.graph, [len(axis) for axis in axes[2:]]
    with graph.inserting_before(new):
        x = _shaped(graph, a["input"], [-1, groups, places, *image])
        x = _padded(graph, x, [before - places, *[0] * len(image)])
        x = _shaped(graph, x, [-1, groups * before, *image])
        out = graph.call_function(aten.group_norm.default, (x, groups, None, None, a["eps"]))
        out = _shaped(graph, out, [-1, groups, before, *image])
        out = graph.call_function(aten.slice.Tensor, (out, 2, 0, places))
        out = _shaped(graph, out, [-1, channels, *image])
        for name, operator in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
            if a[name] is not None:
                each = _shaped(graph, a[name], [channels, *[1] * len(image)])
                out = graph.call_function(operator, (out, each))
    new.replace_all_uses_with(out)


def native_group_norm(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    write(new, "group", len(cut.live(cut.dependency.walk.inner[old])))
    write(new, "C", len(cut.live(cut.axes(old.all_input_nodes[0])[1])))


def scaled(new: fx.Node, factor: float) -> None:
    """Let every reader of `new` read `factor` times it."""
    users = list(new.users)
    with new.graph.inserting_after(new):
        product = new.graph.call_function(aten.mul.Tensor, (new, factor))
    product.meta = {k: v for k, v in new.meta.items() if k in ("val", "nn_module_stack", "stack_trace")}
    for user in users:
        user.replace_input_with(new, product)


def _over(cut: Cut, old: fx.Node, a: Args) -> Sequence[tuple]:
    return cut.axes(old.all_input_nodes[0])[-len(a["normalized_shape"]) :]


def _padded(graph: fx.Graph, value: fx.Node | None, missing: Sequence[int]) -> fx.Node | None:
    """`missing[i]` zeros at the end of each of the last axes."""
    if value is None:
        return None
    widths = [width for count in reversed(missing) for width in (0, count)]
    return graph.call_function(aten.constant_pad_nd.default, (value, widths))


def _shaped(graph: fx.Graph, value: Any, shape: Sequence[int]) -> fx.Node:
    return graph.call_function(aten.reshape.default, (value, list(shape)))


NORM_EDITS: dict[str, Edit] = {
    "aten.layer_norm": layer_norm,
    "aten.native_layer_norm": normalized,
    "aten.rms_norm": rms_norm,
    "aten.group_norm": group_norm,
    "aten.native_group_norm": native_group_norm,
}
