"""How each operator's constants follow a removal.

Sizes are recomputed from the labels. Numbers that are not sizes (a scale of 1 / sqrt(width), a mean's divisor) keep their old
value, so that removing a position is the same as zeroing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod, sqrt
from typing import Any

import torch
from torch import fx

from tersor.graph.arguments import write
from tersor.graph.cut import Cut, Edit
from tersor.graph.edits_norms import NORM_EDITS, scaled
from tersor.graph.rules_elementwise import reduced_axes

aten = torch.ops.aten
Args = Mapping[str, Any]


def size_before(cut: Cut, old: fx.Node, new: fx.Node) -> None:
    """A size that was read from a value keeps its old meaning; the sizes made of it are rewritten where they are used."""
    source, at = old.args
    axes = cut.axes(source)
    axis = axes[at]
    if not cut.changed(axis):
        return
    new.replace_all_uses_with(cut.size_before(source, at % len(axes), new))


def _whole_shape(name: str) -> Edit:
    """Sizes that spell out the result's whole shape."""

    def edit(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
        axes = cut.axes(old)
        sizes = [
            size if size == -1 or not cut.changed(axis) else cut.size(old, at, new)
            for at, (size, axis) in enumerate(zip(a[name], axes, strict=True))
        ]
        write(new, name, sizes)

    return edit


def _unflatten(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    at = a["dim"] % len(cut.axes(old.all_input_nodes[0]))
    made = range(at, at + len(a["sizes"]))
    write(new, "sizes", [s if s == -1 else cut.size(old, d, new) for d, s in zip(made, a["sizes"], strict=True)])


def _split(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    parts = cut.dependency.walk.values[old]
    source = old.all_input_nodes[0]
    at = a["dim"] % len(cut.axes(source))
    if not cut.changed(cut.axes(source)[at]):
        return
    sizes = [len(cut.live(axes[at])) for axes in parts]
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
        cut.size(old, at, new) if (at < lead or len(x[at - lead]) == 1) and cut.changed(axis) else count
        for at, (axis, count) in enumerate(zip(axes, a["repeats"], strict=True))
    ]
    write(new, "repeats", times)


def _mean(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """The divisor stays what it was."""
    x = cut.axes(old.all_input_nodes[0])
    over = reduced_axes(len(x), a)
    ratio = prod(len(cut.live(x[d])) for d in over) / prod(len(x[d]) for d in over)
    if ratio != 1:
        scaled(new, ratio)


def _attention(cut: Cut, old: fx.Node, new: fx.Node, a: Args) -> None:
    """The scale of the old width."""
    if a.get("scale") is None:
        write(new, "scale", 1 / sqrt(len(cut.axes(old.all_input_nodes[0])[-1])))


def _named(names: str, edit: Edit) -> dict[str, Edit]:
    return {f"aten.{name}": edit for name in names.split()}


EDITS: dict[str, Edit] = {
    **_named("view _unsafe_view expand broadcast_to zeros ones full empty", _whole_shape("size")),
    **_named("new_zeros new_ones new_full new_empty", _whole_shape("size")),
    **_named("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk", _split),
    **_named("constant_pad_nd pad", _pad),
    **_named("conv1d conv2d conv3d convolution channel_shuffle", _inner("groups")),
    **_named("conv_transpose1d conv_transpose2d conv_transpose3d", _inner("groups")),
    "aten.reshape": _whole_shape("shape"),
    "aten.unflatten": _unflatten,
    "aten.slice": _slice,
    "aten.narrow": _narrow,
    "aten.repeat": _repeat,
    "aten.repeat_interleave": _repeat_interleave,
    **NORM_EDITS,
    "aten.mean": _mean,
    "aten.scaled_dot_product_attention": _attention,
}
"""What to do, by operator name, where an input, the output or a hidden axis of a node became shorter."""
