"""Rules of the operators that move positions about: reshape, permute, cat, split, slice, pad, repeat, index."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import fx

from tersor.graph.labels import TRUE, Axis
from tersor.graph.rules_elementwise import broadcast
from tersor.graph.trace import Args, Axes, NoRule, Rule, Trace, Value


def reshape(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Runs of axes of equal product are merged and split again; nothing else moves."""
    x, shape = t.axes(node.all_input_nodes[0]), t.shape(node)
    out: list[Axis] = []
    for taken, made in runs([len(axis) for axis in x], shape):
        out.extend(_regroup(t, node, x[slice(*taken)], shape[slice(*made)]))
    return tuple(out)


def runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The shortest runs `old[i:j]`, `new[k:l]` of equal product, in order, that cover both shapes."""
    if 0 in old or 0 in new:
        raise NoRule
    found = []
    i = k = 0
    while i < len(old) or k < len(new):
        j, m = min(i + 1, len(old)), min(k + 1, len(new))
        while prod(old[i:j]) != prod(new[k:m]):
            if prod(old[i:j]) < prod(new[k:m]):
                j += 1
            else:
                m += 1
            if j > len(old) or m > len(new):
                raise NoRule
        if j == len(old) or m == len(new):  # trailing ones belong to the last run
            j, m = (len(old), len(new)) if prod(old[j:]) == prod(new[m:]) == 1 else (j, m)
        found.append(((i, j), (k, m)))
        i, k = j, m
    return found


def _regroup(t: Trace, node: fx.Node, axes: Axes, shape: Sequence[int]) -> Sequence[Axis]:
    if [len(axis) for axis in axes] == list(shape):
        return axes
    wide = [axis for axis in axes if len(axis) > 1]
    sizes = [size for size in shape if size > 1]
    if [len(axis) for axis in wide] == sizes and sizes:  # only ones came or went
        for axis in axes:
            if len(axis) == 1:
                t.freeze(axis, node, "drops its only position")
        rest = iter(wide)
        return [next(rest) if size > 1 else t.still(1, node) for size in shape]
    return t.split(t.labels.merge(axes) if axes else (TRUE,), list(shape), node)


def unsqueeze(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = t.axes(a["self"])
    at = a["dim"] % (len(x) + 1)
    return (*x[:at], t.still(1, node), *x[at:])


def squeeze(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = t.axes(a["self"])
    dims = a.get("dim")
    asked = range(len(x)) if dims is None else [d % len(x) for d in ([dims] if isinstance(dims, int) else dims)]
    gone = {d for d in asked if len(x[d]) == 1}
    for d in gone:
        t.freeze(x[d], node, "drops its only position")
    return tuple(axis for d, axis in enumerate(x) if d not in gone)


def permute(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = t.axes(a["self"])
    return tuple(x[d % len(x)] for d in a["dims"])


def transpose(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = list(t.axes(a["self"]))
    i, j = (a["dim0"] % len(x), a["dim1"] % len(x)) if "dim0" in a else (0, -1)
    if "dim0" in a or len(x) == 2:
        x[i], x[j] = x[j], x[i]
    elif len(x) > 2:
        x = x[::-1]
    return tuple(x)


def cat(t: Trace, node: fx.Node, a: Args) -> Axes:
    parts = [t.axes(each) for each in a["tensors"]]
    parts = [part for part in parts if len(part) > 1 or len(part[0])]  # the old empty tensor of shape (0,)
    at = a["dim"] % len(parts[0])
    for part in parts[1:]:
        for d, axis in enumerate(part):
            if d != at:
                t.unify(parts[0][d], axis, node)
    joined = tuple(label for part in parts for label in part[at])
    return (*parts[0][:at], joined, *parts[0][at + 1 :])


def stack(t: Trace, node: fx.Node, a: Args) -> Axes:
    parts = [t.axes(each) for each in a["tensors"]]
    at = a["dim"] % (len(parts[0]) + 1)
    x = broadcast(t, node, parts) if parts[0] else ()
    return (*x[:at], t.still(len(parts), node, "stacks all of its inputs"), *x[at:])


def split(t: Trace, node: fx.Node, a: Args) -> Value:
    """split, chunk, split_with_sizes, tensor_split: consecutive segments."""
    x = t.axes(node.all_input_nodes[0])
    at = a["dim"] % len(x)
    out, start = [], 0
    for shape in t.shape(node):
        size = shape[at]
        out.append((*x[:at], x[at][start : start + size], *x[at + 1 :]))
        start += size
    if start != len(x[at]):
        raise NoRule
    return tuple(out)


def unbind(t: Trace, node: fx.Node, a: Args) -> Value:
    x = t.axes(a["self"])
    at = a["dim"] % len(x)
    t.freeze(x[at], node, "takes every position apart")
    return tuple((*x[:at], *x[at + 1 :]) for _ in t.shape(node))


def select(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = t.axes(a["self"])
    at = a["dim"] % len(x)
    t.freeze(x[at], node, "reads one position by its number")
    return (*x[:at], *x[at + 1 :])


def slice_(t: Trace, node: fx.Node, a: Args) -> Axes:
    """A segment; with a step the axis is seen as (n / step, step), and the second of them stays whole."""
    x = t.axes(a["self"])
    at, step, size = a["dim"] % len(x), a["step"], t.shape(node)[a["dim"] % len(x)]
    axis = x[at]
    if t.symbolic(node, at) or t.symbolic(node.all_input_nodes[0], at):
        part = axis if size == len(axis) else None
    else:
        part = _segment(t, node, axis, a["start"] or 0, step)
    if part is None:
        t.freeze(axis, node, "cuts it by number")
        part = t.still(size, node)
    return (*x[:at], part[:size], *x[at + 1 :])


def _segment(t: Trace, node: fx.Node, axis: Axis, start: object, step: int) -> Axis | None:
    if not isinstance(start, int):
        return None
    start = max(start + len(axis), 0) if start < 0 else start
    if step > 1 and not t.labels.frozen(axis):
        if len(axis) % step or start >= step:
            return None
        _, phase = t.split(axis, (len(axis) // step, step), node)
        t.freeze(phase, node, f"takes every {step}th position")
    return axis[start::step]


def narrow(t: Trace, node: fx.Node, a: Args) -> Axes:
    x, start = t.axes(a["self"]), a["start"]
    at = a["dim"] % len(x)
    if not isinstance(start, int) or t.symbolic(node.all_input_nodes[0], at):
        raise NoRule
    start %= len(x[at])
    return (*x[:at], x[at][start : start + t.shape(node)[at]], *x[at + 1 :])


def pad(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Constant padding; the positions it adds can be removed again. Negative widths cut."""
    x, widths = list(t.axes(a["self"])), list(a["pad"])
    if a.get("mode", "constant") != "constant":
        for axis in x[len(x) - len(widths) // 2 :]:
            t.freeze(axis, node, "mirrors it")
        return tuple(
            t.still(size, node) if i >= len(x) - len(widths) // 2 else x[i] for i, size in enumerate(t.shape(node))
        )
    for i in range(len(widths) // 2):
        at, before, after = len(x) - 1 - i, widths[2 * i], widths[2 * i + 1]
        if not isinstance(before, int) or not isinstance(after, int):
            raise NoRule
        kept = x[at][max(-before, 0) : len(x[at]) - max(-after, 0)]
        x[at] = (*t.labels.fresh(max(before, 0)), *kept, *t.labels.fresh(max(after, 0)))
    return tuple(x)


def expand(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Copies of a single position, any of which can be dropped."""
    x, shape = t.axes(a["self"]), t.shape(node)
    x = (*(t.still(1, node) for _ in range(len(shape) - len(x))), *x)
    return tuple(_expanded(t, node, axis, size, d) for d, (axis, size) in enumerate(zip(x, shape, strict=True)))


def _expanded(t: Trace, node: fx.Node, axis: Axis, size: int, at: int) -> Axis:
    if len(axis) == size:
        return axis
    t.freeze(axis, node, "repeats its only position")
    return t.still(size, node) if t.symbolic(node, at) else t.labels.fresh(size)


def repeat(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Whole copies, one after the other; copies of a single position can be dropped."""
    x, shape = t.axes(a["self"]), t.shape(node)
    x = (*(t.still(1, node) for _ in range(len(shape) - len(x))), *x)
    return tuple(
        _expanded(t, node, axis, size, d) if len(axis) == 1 else axis * (size // len(axis))
        for d, (axis, size) in enumerate(zip(x, shape, strict=True))
    )


def repeat_interleave(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Each position `repeats` times in a row; the j-th copy of all positions can be dropped."""
    x, times = t.axes(a["self"]), a["repeats"]
    if not isinstance(times, int) or a["dim"] is None:
        raise NoRule
    at = a["dim"] % len(x)
    t.inner[node] = t.labels.fresh(times) if times > 1 else t.still(times, node)
    return (*x[:at], t.labels.merge([x[at], t.inner[node]]), *x[at + 1 :])


def index(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Indexing by tensors: the indexed axes are read by number."""
    x, picks = t.axes(a["self"]), list(a["indices"])
    picks += [None] * (len(x) - len(picks))
    at = [d for d, pick in enumerate(picks) if pick is not None]
    for d in at:
        t.freeze(x[d], node, "reads positions by their numbers")
    if any(pick is not None and not t.is_tensor(pick) for pick in picks) or not at:
        raise NoRule
    picked = broadcast(t, node, [t.axes(picks[d]) for d in at])
    kept = [axis for d, axis in enumerate(x) if d not in at]
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    return (*kept[:first], *picked, *kept[first:])


def index_select(t: Trace, node: fx.Node, a: Args) -> Axes:
    x = t.axes(a["self"])
    at = a["dim"] % len(x)
    t.freeze(x[at], node, "reads positions by their numbers")
    return (*x[:at], t.axes(a["index"])[0], *x[at + 1 :])


def gather(t: Trace, node: fx.Node, a: Args) -> Axes:
    x, picks = t.axes(a["self"]), t.axes(a["index"])
    at = a["dim"] % len(x)
    t.freeze(x[at], node, "reads positions by their numbers")
    for d, axis in enumerate(x):
        if d != at and len(axis) == len(picks[d]):
            t.unify(axis, picks[d], node)
        elif d != at:
            t.freeze(axis, node, "reads positions by their numbers")
    return picks


def scatter(t: Trace, node: fx.Node, a: Args) -> Axes:
    """A copy of the first tensor in which the second takes the place of a part, along one axis."""
    x, part = t.axes(a["self"]), list(t.axes(a["src"]))
    at = a["dim"] % len(x)
    if len(part) == len(x):
        t.freeze(part.pop(at), node, "writes positions by their numbers")
    t.freeze(x[at], node, "writes positions by their numbers")
    for mine, its in zip((*x[:at], *x[at + 1 :]), part, strict=True):
        t.unify(mine, its, node)
    return x


def pixel_shuffle(t: Trace, node: fx.Node, a: Args) -> Axes:
    """C r^2 channels become C channels of r times the side."""
    x, factor = t.axes(a["self"]), a["upscale_factor"]
    return _shuffled(t, node, x, factor * factor)


def pixel_unshuffle(t: Trace, node: fx.Node, a: Args) -> Axes:
    x, factor = t.axes(a["self"]), a["downscale_factor"]
    for axis in x[-2:]:
        t.freeze(axis, node, "reads it as an image")
    channels = t.labels.merge([x[-3], t.still(factor * factor, node)])
    return (*x[:-3], channels, *(t.still(size, node) for size in t.shape(node)[-2:]))


def _shuffled(t: Trace, node: fx.Node, x: Axes, phases: int) -> Axes:
    channels, phase = t.split(x[-3], (len(x[-3]) // phases, phases), node)
    for axis in (phase, *x[-2:]):
        t.freeze(axis, node, "turns it into image positions")
    return (*x[:-3], channels, *(t.still(size, node) for size in t.shape(node)[-2:]))


def channel_shuffle(t: Trace, node: fx.Node, a: Args) -> Axes:
    x, groups = t.axes(a["self"]), a["groups"]
    group, place = t.split(x[1], (groups, len(x[1]) // groups), node)
    t.inner[node] = group
    return (x[0], t.labels.merge([place, group]), *x[2:])


def unfold_image(t: Trace, node: fx.Node, a: Args) -> Axes:
    """im2col: C channels become C k^2 rows."""
    x = t.axes(a["self"])
    for axis in x[-2:]:
        t.freeze(axis, node, "reads it as an image")
    taps = t.still(prod(a["kernel_size"]), node)
    return (*x[:-3], t.labels.merge([x[-3], taps]), t.still(t.shape(node)[-1], node))


def fold_image(t: Trace, node: fx.Node, a: Args) -> Axes:
    """col2im: C k^2 rows become C channels."""
    x, taps = t.axes(a["self"]), prod(a["kernel_size"])
    channels, tap = t.split(x[-2], (len(x[-2]) // taps, taps), node)
    for axis in (tap, x[-1]):
        t.freeze(axis, node, "turns it into image positions")
    return (*x[:-2], channels, *(t.still(size, node) for size in t.shape(node)[-2:]))


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


SHAPE: dict[str, Rule] = {
    **_named("view reshape _unsafe_view flatten unflatten reshape_as view_as _reshape_alias", reshape),
    **_named("transpose t numpy_T swapaxes", transpose),
    **_named("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk", split),
    **_named("constant_pad_nd pad", pad),
    **_named("expand expand_as broadcast_to", expand),
    **_named("cat concat concatenate", cat),
    "aten.unsqueeze": unsqueeze,
    "aten.squeeze": squeeze,
    "aten.permute": permute,
    "aten.stack": stack,
    "aten.unbind": unbind,
    "aten.select": select,
    "aten.slice": slice_,
    "aten.narrow": narrow,
    "aten.repeat": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.index": index,
    "aten.index_select": index_select,
    "aten.gather": gather,
    **_named("select_scatter slice_scatter", scatter),
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.channel_shuffle": channel_shuffle,
    "aten.im2col": unfold_image,
    "aten.col2im": fold_image,
}
