"""Where a zeroed position does not stay zero.

Zeroing the parameters of a channel makes its activation zero, and ReLU, products and convolutions keep it so. A sigmoid does
not: sigmoid(0) = 1/2. As long as the next matrix has zeros there nothing is seen of it, but a sum, a mean or a product of two
activations over that axis sees it, and then removing is not the same as zeroing. Those places are *counted*.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tersor.graph.arguments import MATMUL, bound, factors, operator_name
from tersor.graph.labels import Axis
from tersor.graph.rules_elementwise import reduced_axes
from tersor.graph.rules_matrix import subscripts
from tersor.graph.trace import Axes, Trace, flat_axes

Variables = frozenset[int]
NONE: Variables = frozenset()


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
    im2col col2im reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d rms_norm zeros zeros_like new_zeros lstm
    gru rnn_tanh _weight_norm"""
)
_COPIES = _aten("expand expand_as broadcast_to repeat repeat_interleave")
_SUMS = _aten("add sub rsub maximum minimum lerp")
_PRODUCTS = _aten("mul multiply")
_MATRIX = _aten("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
_ADDMM = _aten("addmm baddbmm")
_WIDTH_NORMS = _aten("layer_norm rms_norm")
_NORMS = _aten(
    """batch_norm _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm native_group_norm
    instance_norm"""
)


def unclean_sums(nodes: Iterable[fx.Node], walk: Trace) -> list[tuple[Axis, str]]:
    """Axes, and the nodes that sum over them, where a removed position would have added something."""
    residue = _Residue(walk)
    found: list[tuple[Axis, str]] = []
    for node in nodes:
        if node.op == "call_function" and walk.values.get(node) is not None:
            arguments = bound(node)
            residue.dirty[node] = residue.left_by(node, arguments)
            found += [(axis, node.name) for axis in residue.summed(node, arguments)]
    return found


@dataclass
class _Residue:
    """`dirty`: by node, the variables whose dead positions may hold something else than zero."""

    walk: Trace
    dirty: dict[fx.Node, Variables] = field(default_factory=dict)
    _of_axis: dict[int, Variables] = field(default_factory=dict)

    def left_by(self, node: fx.Node, a: Mapping[str, Any]) -> Variables:
        mine = self._variables(flat_axes(self.walk.values[node]))
        name = operator_name(node)
        inputs = [each for each in node.all_input_nodes if self.walk.values.get(each) is not None]
        inherited = frozenset[int]().union(*(self.dirty.get(each, NONE) for each in inputs)) & mine
        if name == "aten.pow":
            return inherited if isinstance(a["exponent"], int | float) and a["exponent"] > 0 else mine
        if name in _KEEPS or node.target is operator.getitem:
            return inherited
        if name in _COPIES:
            return inherited | (mine - self._variables(self.walk.axes(inputs[0])))
        if name in ("aten.constant_pad_nd", "aten.pad"):
            return inherited if not a.get("value") else mine
        if name in ("aten.full", "aten.full_like", "aten.new_full"):
            return NONE if a["fill_value"] == 0 else mine
        if name == "aten.embedding":
            return NONE
        if name in _NORMS and a.get("weight") is not None:
            return mine - self._variables(self.walk.axes(a["weight"]))
        if not self.walk.is_tensor(node):
            return mine
        out = self.walk.axes(node) if _single(self.walk, node) else ()
        return frozenset(v for v in mine if not (out and self._clean(name, a, out, v)))

    def summed(self, node: fx.Node, a: Mapping[str, Any]) -> list[Axis]:
        """The axes over which the node adds up what is not zero."""
        name = operator_name(node)
        if name in ("aten.mean", "aten.sum", "aten.linalg_vector_norm"):
            x, left = self.walk.axes(a["self"]), self.dirty.get(a["self"], NONE)
            return [x[d] for d in reduced_axes(len(x), a) if self._of(x[d]) & left]
        if name in _WIDTH_NORMS:
            x, left = self.walk.axes(a["input"]), self.dirty.get(a["input"], NONE)
            return [axis for axis in x[-len(a["normalized_shape"]) :] if self._of(axis) & left]
        if name == "aten.group_norm":
            return self._places(node, a)
        if name == "aten.einsum":
            return self._contracted(a)
        if name in MATMUL or name in _ADDMM:
            pair = factors(a)
        elif name == "aten.scaled_dot_product_attention":
            pair = a["query"], a["key"]
        else:
            return []
        axis = self.walk.axes(pair[0])[-1]
        return [axis] if self._of(axis) & self.dirty.get(pair[0], NONE) & self.dirty.get(pair[1], NONE) else []

    def _places(self, node: fx.Node, a: Mapping[str, Any]) -> list[Axis]:
        """Where a group norm sums over what is not zero: inside its groups, since whole groups do not meet."""
        channels, group = self.walk.axes(a["input"])[1], self.walk.inner.get(node, ())
        left = (self._of(channels) - self._of(group)) & self.dirty.get(a["input"], NONE)
        return [tuple(frozenset((v,)) for v in sorted(left))] if left else []

    def _contracted(self, a: Mapping[str, Any]) -> list[Axis]:
        """The letters of an einsum that are summed over while no operand is zero there."""
        readers: dict[str, list[tuple[Any, Axis]]] = {}
        operands, output = subscripts(a)
        for letters, each in operands:
            for letter, axis in zip(letters, self.walk.axes(each), strict=False):
                readers.setdefault(letter, []).append((each, axis))
        return [
            found[0][1]
            for letter, found in readers.items()
            if letter not in output and all(self._of(axis) & self.dirty.get(each, NONE) for each, axis in found)
        ]

    def _clean(self, name: str, a: Mapping[str, Any], out: Axes, variable: int) -> bool:
        """Whether what multiplies or adds up to this value makes it zero wherever `variable` is dead."""
        where = [back for back in range(1, len(out) + 1) if variable in self._of(out[-back])]

        def zero(each: Any, back: int) -> bool:
            axes = self.walk.axes(each) if self.walk.is_tensor(each) else ()
            here = len(axes) >= back and variable in self._of(axes[-back])
            return here and variable not in self.dirty.get(each, NONE)

        if name in _PRODUCTS:
            return all(zero(a["self"], back) or zero(a["other"], back) for back in where)
        if name in _SUMS:
            other = a["end"] if name == "aten.lerp" else a["other"]
            return all(zero(a["self"], back) and zero(other, back) for back in where)
        if name in ("aten.div", "aten.true_divide"):
            return all(zero(a["self"], back) and not zero(a["other"], back) for back in where)
        if name in _MATRIX:
            rows = 1 if name == "aten.linear" else len(out) - 1
            return all(back == rows or (a["bias"] is None and zero(a["input"], back)) for back in where)
        if name in MATMUL:
            first, second = factors(a)
            return all((back != 1 and zero(first, back)) or (back != 2 and zero(second, back)) for back in where)
        if name in _ADDMM:
            added, (first, second) = a.get("self", a.get("input")), factors(a)
            return all(
                zero(added, back) and ((back != 1 and zero(first, back)) or (back != 2 and zero(second, back)))
                for back in where
            )
        if name == "aten.einsum":
            operands, output = subscripts(a)
            return all(
                any(
                    output[-back] in letters and zero(each, len(letters) - letters.index(output[-back]))
                    for letters, each in operands
                )
                for back in where
            )
        if name == "aten.scaled_dot_product_attention":
            return all(zero(a["value"], back) for back in where)
        return False

    def _variables(self, axes: Iterable[Axis]) -> Variables:
        return frozenset[int]().union(*map(self._of, axes))

    def _of(self, axis: Axis) -> Variables:
        if id(axis) not in self._of_axis:
            self._of_axis[id(axis)] = frozenset(v for label in set(axis) for v in self.walk.labels.normal(label))
        return self._of_axis[id(axis)]


def _single(walk: Trace, node: fx.Node) -> bool:
    shape = walk.shape(node)
    return not shape or isinstance(shape[0], int)
