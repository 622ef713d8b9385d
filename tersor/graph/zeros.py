"""Where a zeroed position does not stay zero.

Zeroing the parameters of a channel makes its activation zero, and ReLU, products and convolutions keep it so. A sigmoid does
not: sigmoid(0) = 1/2. As long as the next matrix has zeros there nothing is seen of it, but a sum, a mean or a product of two
activations over that axis sees it, and then removing is not the same as zeroing. Those places are *counted*.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from tersor.graph.arguments import bound, operator_name
from tersor.graph.labels import Axis
from tersor.graph.rules_elementwise import reduced_axes
from tersor.graph.trace import Axes, Trace, flat_axes

Dirty = dict[fx.Node, frozenset[int]]
"""By node, the variables whose dead positions may hold something else than zero."""


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in names.split())


_KEEPS = _aten(
    """relu relu6 gelu silu mish tanh sin neg abs sign sqrt square leaky_relu elu celu selu hardtanh hardswish softsign erf
    expm1 log1p trunc floor round softshrink hardshrink tanhshrink prelu _prelu_kernel glu clone contiguous alias detach to
    _to_copy dropout feature_dropout lift_fresh_copy type_as view reshape _unsafe_view flatten unflatten reshape_as view_as
    transpose t numpy_T permute swapaxes unsqueeze squeeze split split_with_sizes chunk tensor_split unsafe_split unbind select
    slice narrow cat concat stack index index_select flip roll mean sum amax amin max min linalg_vector_norm norm max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    _adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_linear1d upsample_nearest2d
    upsample_bilinear2d upsample_bicubic2d upsample_nearest3d upsample_trilinear3d pixel_shuffle pixel_unshuffle channel_shuffle
    im2col reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d rms_norm zeros zeros_like new_zeros lstm gru
    rnn_tanh"""
)
_COPIES = _aten("expand expand_as broadcast_to repeat repeat_interleave")
_SUMS = _aten("add sub rsub maximum minimum lerp")
_PRODUCTS = _aten("mul multiply")
_MATRIX = _aten("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
_MATMUL = _aten("matmul mm bmm")
_NORMS = _aten(
    """batch_norm _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm
    instance_norm"""
)


def unclean_sums(nodes: Iterable[fx.Node], walk: Trace) -> list[tuple[Axis, str]]:
    """Axes, and the nodes that sum over them, where a removed position would have added something."""
    dirty: Dirty = {}
    found: list[tuple[Axis, str]] = []
    for node in nodes:
        if node.op == "call_function" and walk.values.get(node) is not None:
            arguments = bound(node)
            dirty[node] = _dirty(node, arguments, walk, dirty)
            found += [(axis, node.name) for axis in _summed(node, arguments, walk, dirty)]
    return found


def _dirty(node: fx.Node, a: Mapping[str, Any], walk: Trace, dirty: Dirty) -> frozenset[int]:
    mine = _variables(walk, flat_axes(walk.values[node]))
    if not mine:
        return mine
    name = operator_name(node)
    inputs = [each for each in node.all_input_nodes if walk.values.get(each) is not None]
    inherited = frozenset[int]().union(*(dirty.get(each, frozenset()) for each in inputs)) & mine
    if name == "aten.pow":
        return inherited if isinstance(a["exponent"], int | float) and a["exponent"] > 0 else mine
    if name in _KEEPS or node.target is operator.getitem:
        return inherited
    if name in _COPIES:
        return inherited | (mine - _variables(walk, flat_axes(walk.values[inputs[0]])))
    if name in ("aten.constant_pad_nd", "aten.pad"):
        return inherited if not a.get("value") else mine
    if name in ("aten.full", "aten.full_like", "aten.new_full"):
        return frozenset() if a["fill_value"] == 0 else mine
    if name == "aten.embedding":
        return frozenset()
    if name in _NORMS and a.get("weight") is not None and a.get("bias") is not None:
        return mine - _variables(walk, walk.axes(a["weight"]))
    out = walk.axes(node) if not isinstance(walk.values[node][0], type(None)) else ()
    return frozenset(v for v in mine if not _clean(node, name, a, walk, dirty, out, v))


def _clean(node: fx.Node, name: str, a: Mapping[str, Any], walk: Trace, dirty: Dirty, out: Axes, variable: int) -> bool:
    """Whether what multiplies or adds up to this value makes it zero wherever `variable` is dead."""

    def zero(each: Any, back: int) -> bool:
        axes = walk.axes(each) if walk.is_tensor(each) else ()
        here = len(axes) >= back and variable in _variables(walk, [axes[-back]])
        return here and variable not in dirty.get(each, frozenset())

    where = [back for back in range(1, len(out) + 1) if variable in _variables(walk, [out[-back]])]
    if name in _PRODUCTS:
        return all(any(zero(a[side], back) for side in ("self", "other")) for back in where)
    if name in _SUMS:
        return all(zero(each, back) for back in where for each in (a["self"], a.get("other")))
    if name in ("aten.div", "aten.true_divide"):
        return all(zero(a["self"], back) and not zero(a["other"], back) for back in where)
    if name in _MATRIX:
        rows = 1 if name == "aten.linear" else len(out) - 1
        return all(back == rows or (a["bias"] is None and zero(a["input"], back)) for back in where)
    if name in _MATMUL:
        other = a["other"] if "other" in a else a["mat2"]
        return all((back != 1 and zero(a["self"], back)) or (back != 2 and zero(other, back)) for back in where)
    if name == "aten.scaled_dot_product_attention":
        return all(zero(a["value"], back) for back in where)
    return False


def _summed(node: fx.Node, a: Mapping[str, Any], walk: Trace, dirty: Dirty) -> list[Axis]:
    name = operator_name(node)
    if name in ("aten.mean", "aten.sum", "aten.linalg_vector_norm"):
        x = walk.axes(a["self"])
        return [x[d] for d in reduced_axes(len(x), a) if _meets(walk, x[d], dirty.get(a["self"]))]
    if name in _MATMUL:
        other = a["other"] if "other" in a else a["mat2"]
        return _contracted(walk, dirty, a["self"], other)
    if name == "aten.scaled_dot_product_attention":
        return _contracted(walk, dirty, a["query"], a["key"])
    return []


def _contracted(walk: Trace, dirty: Dirty, first: fx.Node, second: fx.Node) -> list[Axis]:
    both = dirty.get(first, frozenset()) & dirty.get(second, frozenset())
    axis = walk.axes(first)[-1]
    return [axis] if _meets(walk, axis, both) else []


def _meets(walk: Trace, axis: Axis, variables: frozenset[int] | None) -> bool:
    return bool(variables) and not _variables(walk, [axis]).isdisjoint(variables or ())


def _variables(walk: Trace, axes: Sequence[Axis]) -> frozenset[int]:
    return frozenset(v for axis in axes for label in set(axis) for v in walk.labels.normal(label))
