"""Rules of the operators that keep positions apart: elementwise, norms, reductions, pooling, interpolation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tersor.graph.labels import Axis
from tersor.graph.trace import Args, Axes, NoRule, Rule, Trace, Value


def broadcast(t: Trace, node: fx.Node, operands: Sequence[Axes]) -> Axes:
    """Align from the right; positions that meet live together."""
    rank = max(len(axes) for axes in operands)
    out: list[Axis] = []
    for back in range(rank, 0, -1):
        meeting = [axes[-back] for axes in operands if len(axes) >= back]
        size = max(map(len, meeting))
        if any(len(axis) == 0 for axis in meeting):
            raise NoRule
        full = [axis for axis in meeting if len(axis) == size]
        for axis in meeting:
            if len(axis) == size:
                t.unify(full[0], axis, node)
            elif len(axis) == 1:
                t.freeze(axis, node, "repeats its only position")
            else:
                raise NoRule
        out.append(full[0])
    return tuple(out)


def pointwise(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Any elementwise operator."""
    return broadcast(t, node, [t.axes(n) for n in node.all_input_nodes if t.is_tensor(n)])


def same(t: Trace, node: fx.Node, a: Args) -> Axes:
    """A copy, a cast, or something of the first tensor's shape filled with one value."""
    return t.axes(node.all_input_nodes[0])


def prelu(t: Trace, node: fx.Node, a: Args) -> Axes:
    """A slope for every channel of axis 1, or one for all."""
    x, slopes = t.axes(a["self"]), t.axes(a["weight"])
    for axis in slopes:
        if len(x) > 1 and len(axis) == len(x[1]):
            t.unify(x[1], axis, node)
        else:
            t.freeze(axis, node, "repeats its only position")
    return x


def glu(t: Trace, node: fx.Node, a: Args) -> Axes:
    """The first half times the sigmoid of the second."""
    x = t.axes(a["self"])
    at = a["dim"] % len(x)
    half = len(x[at]) // 2
    t.unify(x[at][:half], x[at][half:], node)
    return (*x[:at], x[at][:half], *x[at + 1 :])


def batch_norm(t: Trace, node: fx.Node, a: Args) -> Value:
    """Per channel of axis 1; the second and third results are empty in inference."""
    x = t.axes(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if t.is_tensor(a.get(name)):
            t.unify(x[1], t.axes(a[name])[0], node)
    shape = t.shape(node)
    if shape and isinstance(shape[0], int):
        return x
    return (x, *(tuple(t.still(size, node) for size in s) if s is not None else None for s in shape[1:]))


def layer_norm(t: Trace, node: fx.Node, a: Args) -> Value:
    """Over the last axes. What is dead counts as zero, but for the form that also returns its mean."""
    x = t.axes(a["input"])
    count = len(a["normalized_shape"])
    for name in ("weight", "bias"):
        if t.is_tensor(a.get(name)):
            for mine, its in zip(x[-count:], t.axes(a[name]), strict=True):
                t.unify(mine, its, node)
    shape = t.shape(node)
    if shape and isinstance(shape[0], int):
        return x
    for axis in x[-count:]:
        t.counted.append((axis, node.name))
    kept = (*x[:-count], *(t.still(1, node) for _ in range(count)))
    return (x, kept, kept)


def rms_norm(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Over the last axes; the width is corrected exactly when it changes."""
    x = t.axes(a["input"])
    count = len(a["normalized_shape"])
    if t.is_tensor(a.get("weight")):
        for mine, its in zip(x[-count:], t.axes(a["weight"]), strict=True):
            t.unify(mine, its, node)
    return x


def group_norm(t: Trace, node: fx.Node, a: Args) -> Value:
    """Whole groups come and go, and places inside every group, which count as zeros when they are dead."""
    x = t.axes(a["input"])
    for name in ("weight", "bias"):
        if t.is_tensor(a.get(name)):
            t.unify(x[1], t.axes(a[name])[0], node)
    groups = a.get("num_groups", a.get("group"))
    group, place = t.split(x[1], (groups, len(x[1]) // groups), node)
    t.inner[node] = group
    shape = t.shape(node)
    single = bool(shape) and isinstance(shape[0], int)
    fixed_image = single and not any(t.symbolic(node, d) for d in range(2, len(x)))
    for axis in x[2:] if fixed_image else (place, *x[2:]):
        t.counted.append((axis, node.name))
    if single:
        return x
    return (x, (x[0], group), (x[0], group))


def instance_norm(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Per channel and item, over the spatial axes."""
    x = t.axes(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if t.is_tensor(a.get(name)):
            t.unify(x[1], t.axes(a[name])[0], node)
    for axis in x[2:]:
        t.counted.append((axis, node.name))
    return x


def softmax(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Its sum counts one axis."""
    x = t.axes(a["self"])
    t.counted.append((x[a["dim"] % len(x)], node.name))
    return x


def reduced_axes(rank: int, a: Args) -> list[int]:
    """The axes that a reduction runs over, ascending; all where none is named."""
    dim = a.get("dim")
    if dim is None or dim == []:
        return list(range(rank))
    return sorted({d % rank for d in ([dim] if isinstance(dim, int) else dim)})


def exact_reduction(t: Trace, node: fx.Node, a: Args) -> Value:
    """Sum and mean: what is dead adds nothing, and a mean's divisor is put right when it is shrunk."""
    return _reduce(t, node, a, counted=False)


def counting_reduction(t: Trace, node: fx.Node, a: Args) -> Value:
    """Variance, extremes, norms: a zero is not the same as nothing."""
    return _reduce(t, node, a, counted=True)


def _reduce(t: Trace, node: fx.Node, a: Args, counted: bool) -> Value:
    x = t.axes(a["self"])
    over = reduced_axes(len(x), a)
    for axis in over:
        if counted:
            t.counted.append((x[axis], node.name))
    keep = bool(a.get("keepdim", False))
    out = tuple(t.still(1, node) if i in over else axis for i, axis in enumerate(x) if keep or i not in over)
    shape = t.shape(node)
    return out if not shape or isinstance(shape[0], int) else (out,) * len(shape)


def frozen_axis(t: Trace, node: fx.Node, a: Args) -> Value:
    """Positions of one axis depend on each other or on their index: cumsum, sort, roll, argmax."""
    x = t.axes(a["self"])
    for axis in reduced_axes(len(x), {"dim": a.get("dim", a.get("dims"))}):
        t.freeze(x[axis], node, "depends on every position and its place")
    shape = t.shape(node)
    return x if not shape or isinstance(shape[0], int) else (x,) * len(shape)


def spectrum(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Fourier transforms along some axes; the others are left as they are, and zeros stay zeros."""
    x = t.axes(a["self"])
    over = reduced_axes(len(x), a)
    for axis in over:
        t.freeze(x[axis], node, "depends on every position and its place")
    return tuple(t.still(t.shape(node)[d], node) if d in over else axis for d, axis in enumerate(x))


def frozen_reduction(t: Trace, node: fx.Node, a: Args) -> Value:
    """argmax and the like: the index itself is the result."""
    x = t.axes(a["self"])
    for axis in reduced_axes(len(x), a):
        t.freeze(x[axis], node, "returns an index into it")
    return _reduce(t, node, a, counted=False)


def spatial(count: int) -> Rule:
    """Pooling and interpolation over the last `count` axes."""

    def rule(t: Trace, node: fx.Node, a: Args) -> Value:
        x = t.axes(node.all_input_nodes[0])
        for axis in x[len(x) - count :]:
            t.freeze(axis, node, "reads it as an image")
        shape = t.shape(node)
        shapes = [shape] if isinstance(shape[0], int) else list(shape)
        out = tuple((*x[: len(x) - count], *(t.still(s, node) for s in each[-count:])) for each in shapes)
        return out[0] if isinstance(shape[0], int) else out

    return rule


def constant(t: Trace, node: fx.Node, a: Args) -> Axes:
    """zeros, ones, full: any part of it is as good as another."""
    shape = t.shape(node)
    return tuple(
        t.still(size, node) if size == 1 or t.symbolic(node, axis) else t.labels.fresh(size)
        for axis, size in enumerate(shape)
    )


def fixed(t: Trace, node: fx.Node, a: Args) -> Axes:
    """arange, eye, tril masks: every position has its own value."""
    for each in node.all_input_nodes:
        for axis in t.axes(each) if t.is_tensor(each) else ():
            t.freeze(axis, node, "gives every position its own value")
    return tuple(t.still(size, node, "gives every position its own value") for size in t.shape(node))


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


ELEMENTWISE: dict[str, Rule] = {
    "pointwise": pointwise,
    **_named(
        "multiply divide subtract true_divide copy where clamp_min clamp_max masked_fill _prelu_kernel", pointwise
    ),
    **_named(
        "floor_divide square rsub maximum minimum square hardswish hardsigmoid hardtanh relu6 celu selu", pointwise
    ),
    **_named(
        "clone contiguous alias detach detach_ to _to_copy dropout feature_dropout native_dropout lift_fresh_copy", same
    ),
    **_named("type_as zeros_like ones_like full_like empty_like rand_like float half double bfloat16 lift_fresh", same),
    **_named("batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm", batch_norm),
    **_named("layer_norm native_layer_norm", layer_norm),
    **_named("group_norm native_group_norm", group_norm),
    "aten.rms_norm": rms_norm,
    "aten.instance_norm": instance_norm,
    **_named("softmax _softmax log_softmax _log_softmax logsumexp_keep", softmax),
    "aten.prelu": prelu,
    "aten.glu": glu,
    **_named("mean sum linalg_vector_norm", exact_reduction),
    **_named("var std var_mean std_mean amax amin max min prod norm any all logsumexp", counting_reduction),
    **_named("cumsum cumprod sort roll flip logcumsumexp", frozen_axis),
    **_named(
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2", spectrum
    ),
    **_named("fft_fftn fft_ifftn fft_rfftn fft_irfftn", spectrum),
    **_named("argmax argmin", frozen_reduction),
    **_named("max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d", spatial(1)),
    **_named("adaptive_max_pool1d reflection_pad1d replication_pad1d", spatial(1)),
    **_named("max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d", spatial(2)),
    **_named("adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d", spatial(2)),
    **_named("_upsample_nearest_exact2d reflection_pad2d replication_pad2d grid_sampler_2d", spatial(2)),
    **_named("max_pool3d max_pool3d_with_indices avg_pool3d adaptive_avg_pool3d upsample_nearest3d", spatial(3)),
    **_named("upsample_trilinear3d adaptive_max_pool3d", spatial(3)),
    **_named("zeros ones full empty new_zeros new_ones new_full new_empty", constant),
    **_named("arange eye linspace tril triu scalar_tensor", fixed),
}
