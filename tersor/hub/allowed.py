"""The operators that an exported program may call, one by one.

`torch.export.load` finds an operator by walking attributes from `torch`, which reaches `torch.os.system`, and torch's own
registry holds operators that read and write files (`aten.from_file`, `aten.save`), print (`aten._print`), put another
memory under a tensor (`aten.set_`), read memory that no size guards (packed, sparse and quantized formats) or draw random
numbers. So an operator passes only where both hold:

* its name is in the list below. What the list holds was read one by one: each computes its result from its arguments
  and from nothing else. An operator that a later torch adds is not in it until somebody has read it.
* its schema says so, too. Every argument is a tensor, a number, a type, a device, or a word out of a fixed set; an
  operator that writes writes only into its first argument and is called `name_` (never `out=`); what draws random numbers has
  dropout in it, which is off when a network predicts.

Together they are complete: an operator has no other way to the world than its schema and its kernel. The schema shuts out
files, streams, generators, objects and hidden outputs whatever the name; the list shuts out kernels that do more than
their schema says. No rule goes by namespace. Arguments are held to the same schema (`why_not_argument`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POINTWISE = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
    atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
    clamp_max clamp_min clip clone complex conj conj_physical copysign cos cosh deg2rad digamma div divide elu eq erf erfc
    erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac gcd ge gelu glu greater greater_equal gt
    hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac imag isclose isfinite isin isinf isnan isneginf
    isposinf isreal lcm ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2 log_sigmoid log_sigmoid_forward
    logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul multiply
    nan_to_num ne neg negative nextafter not_equal polar positive pow prelu _prelu_kernel rad2deg real reciprocal relu relu6
    remainder round rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt square sub subtract
    tan tanh threshold true_divide trunc where xlogy __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__
    special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e
    special_log1p special_log_ndtr special_logit special_ndtr special_ndtri special_psi special_round special_sinc
    special_xlog1py special_xlogy zero fill
"""
_REDUCING = """
    all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum diff dist frobenius_norm kthvalue
    logcumsumexp logsumexp max mean median min mode msort nanmean nanmedian nanquantile nansum norm prod quantile softmax
    _softmax log_softmax _log_softmax _safe_softmax _masked_softmax sort std std_mean sum topk trace var var_mean
    special_logsumexp special_softmax special_log_softmax linalg_norm linalg_vector_norm linalg_matrix_norm
    binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity cross_entropy_loss huber_loss kl_div l1_loss
    mse_loss nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd pairwise_distance smooth_l1_loss
    cdist _cdist_forward _euclidean_dist searchsorted bucketize
"""
_MATRIX = """
    addbmm addmm addmv addr baddbmm bilinear _trilinear bmm chain_matmul dot einsum ger inner _int_mm kron linalg_cross
    linalg_matmul linalg_multi_dot linalg_vecdot linear matmul matrix_power linalg_matrix_power mm mv outer tensordot vdot cross
    det logdet slogdet inverse linalg_det linalg_inv linalg_inv_ex linalg_slogdet _linalg_det _linalg_slogdet
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution conv_tbc
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
    _native_multi_head_attention _transformer_encoder_layer_fwd _transform_bias_rescale_qkv
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _thnn_fused_lstm_cell _thnn_fused_gru_cell
    embedding embedding_bag _embedding_bag _embedding_bag_forward_only embedding_renorm
"""
_POOLING_AND_NORMS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _native_batch_norm_legit_no_training _batch_norm_no_update instance_norm group_norm native_group_norm layer_norm
    native_layer_norm rms_norm _fused_rms_norm renorm _weight_norm _weight_norm_interface norm_except_dim
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa affine_grid_generator grid_sampler grid_sampler_2d grid_sampler_3d
"""
_DROPOUT = _words(
    """
    dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout rrelu lstm gru rnn_tanh
    rnn_relu scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_attention_math
    """
)
_SHAPES = """
    adjoint alias as_strided as_strided_scatter atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
    channel_shuffle native_channel_shuffle chunk column_stack concat concatenate constant_pad_nd contiguous copy detach diag
    diag_embed diagflat diagonal diagonal_scatter dsplit dstack expand expand_as flatten flip fliplr flipud gather
    hsplit hstack im2col col2im index index_add index_copy index_fill index_put index_reduce index_select _unsafe_index
    _unsafe_index_put _unsafe_masked_index lift lift_fresh lift_fresh_copy mH mT masked_scatter masked_select matrix_H meshgrid
    moveaxis movedim narrow nonzero nonzero_numpy nonzero_static argwhere numpy_T one_hot pad _pad_circular _pad_enum permute
    pixel_shuffle pixel_unshuffle put ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d reshape reshape_as _reshape_alias resolve_conj resolve_neg roll rot90
    row_stack scatter scatter_add scatter_reduce select select_scatter slice slice_scatter slice_inverse split
    split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile transpose tril triu unbind
    unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze _unsafe_view vander view view_as
    view_as_complex
    view_as_real vsplit vstack
    alias_copy as_strided_copy detach_copy diagonal_copy expand_copy narrow_copy permute_copy select_copy slice_copy split_copy
    split_with_sizes_copy squeeze_copy t_copy transpose_copy unbind_copy unfold_copy unsqueeze_copy view_as_complex_copy
    view_as_real_copy view_copy
    to _to_copy type_as _cast_Float _cast_Double _cast_Half _cast_Long _cast_Int _conj _conj_copy _neg_view
"""
_MADE = """
    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like hamming_window
    hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like
    scalar_tensor tril_indices triu_indices zeros zeros_like
    fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft
    fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn _fft_c2c _fft_c2r _fft_r2c stft istft
"""
_CHECKS = """
    _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size sym_size sym_numel
    sym_stride sym_storage_offset sym_is_contiguous item _local_scalar_dense
"""
_NAMES = frozenset(
    " ".join((_POINTWISE, _REDUCING, _MATRIX, _POOLING_AND_NORMS, *_DROPOUT, _SHAPES, _MADE, _CHECKS)).split()
)
_OTHERS = frozenset(  # outside ATen: a type's cast, and the codes that quantized models are refused for later, by name
    (
        *(f"torch.ops.prims.{name}.default" for name in ("convert_element_type", "view_of", "iota", "rev")),
        *(
            f"torch.ops.quantized_decomposed.{each}quantize_per_{kind}.{overload}"
            for each in ("", "de")
            for kind, overload in (("tensor", "default"), ("tensor", "tensor"), ("channel", "default"))
        ),
    )
)
_RUNNING = frozenset(("_native_batch_norm_legit", "native_batch_norm"))  # write their statistics, which are buffers
_CHECKING = frozenset(_CHECKS.split())

_PLAIN = _words(
    """
    _operator.getitem _operator.add _operator.sub _operator.mul _operator.floordiv _operator.truediv
    _operator.mod _operator.pow _operator.neg _operator.pos _operator.eq _operator.ne _operator.lt
    _operator.le _operator.gt _operator.ge _operator.and_ _operator.or_ _operator.not_ math.ceil
    math.floor math.trunc torch.sym_float torch.sym_int torch.sym_max torch.sym_min torch.sym_not
    torch.sym_ite torch.sym_sqrt torch.sym_sum torch._sym_sqrt
    """
)
"""Arithmetic on sizes. Not attrgetter, methodcaller and call, which together reach everything."""

_HIGHER: Mapping[str, Sequence[tuple[str, ...]]] = {
    "wrap_with_set_grad_enabled": (("as_bool",), ("as_graph",)),
    "wrap_with_autocast": (
        ("as_string",),
        ("as_scalar_type", "as_none"),
        ("as_bool",),
        ("as_bool", "as_none"),
        ("as_graph",),
    ),
    "cond": (("as_tensor", "as_sym_bool", "as_bool"), ("as_graph",), ("as_graph",)),
    "scan": (("as_graph",),),
    "map_impl": (("as_graph",),),
}
"""Operators that call graphs: the kinds of their first arguments. Not while_loop, whose end nobody can foresee."""

_VALUES = re.compile(  # the kinds of values that an operator may take, as a schema writes them
    r"(Optional\[)?(List\[)?(Optional\[)?"
    r"(Tensor|number|int|float|bool|complex|ScalarType|Layout|Device|MemoryFormat|str|NoneType)\]*"
    r"|Optional\[Generator\]"  # which no archive can give
)
_WORD = re.compile(r"[A-Za-z0-9_.,>\- ]{0,256}")  # modes, reductions, and the equations of einsum
_DIFFERENT = "is not in the list of operators that only compute"


def why_not(target: str) -> str | None:
    """Why a program may not call the operator called `target`, or None where it may."""
    if target in _PLAIN:
        return None
    if not target.startswith("torch.ops."):
        return _DIFFERENT
    namespace, _, rest = target.removeprefix("torch.ops.").partition(".")
    if namespace == "higher_order":
        if rest == "while_loop":
            return "is a loop whose end depends on values, so that nothing says it ends"
        return None if rest in _HIGHER else _DIFFERENT
    name, _, overload = rest.partition(".")
    listed = target in _OTHERS or (namespace == "aten" and (name in _NAMES or name.removesuffix("_") in _NAMES))
    if not listed and namespace != "aten":
        return _DIFFERENT
    schema = schema_of(target)
    if schema is None:
        return f"is unknown to torch {torch.__version__}"
    if _seeded(namespace, name, overload) and name.removesuffix("_") not in _DROPOUT:
        return "draws random numbers"
    return _why_not_schema(name, schema) if listed else _DIFFERENT


def why_not_arguments(target: str, inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why `target` may not be called with these named arguments (as the archive writes them), or None where it may."""
    namespace, _, rest = target.removeprefix("torch.ops.").partition(".")
    if target in _PLAIN:
        return _why_not_kinds(inputs, ()) or _why_not_words(inputs, frozenset())
    if namespace == "higher_order":
        devices = frozenset(("cpu", "cuda"))
        return _why_not_kinds(inputs, _HIGHER[rest]) or _why_not_words(inputs, devices)
    schema = schema_of(target)
    known = {a.name: a for a in schema.arguments} if schema is not None else {}
    for each in inputs:
        if each["name"] not in known:
            return f"has no argument {each['name']!r}"
        kind, value = next(iter(each["arg"].items()))
        if kind == "as_string" and not ("str" in str(known[each["name"]].real_type) and _WORD.fullmatch(value)):
            return f"is given the words {value[:40]!r}"
        if kind in ("as_graph", "as_strings", "as_operator", "as_custom_obj", "as_string_to_argument"):
            return f"is given an argument of the kind {kind}"
        scaling = kind in ("as_float", "as_floats") and rest.removeprefix("_").startswith("upsample")
        if scaling and not _are_scales(value if kind == "as_floats" else [value]):
            return f"is given the scale {value!r}"
    if len({each["name"] for each in inputs}) < len(inputs):
        return "is given one argument twice"
    return None


def _are_scales(values: Sequence[Any]) -> bool:
    """Not so small or large that torch, which turns the inverse of a scale into an index without looking, reads elsewhere."""
    return all(isinstance(each, float | int) and 1e-4 <= each <= 1e4 for each in values)


@cache
def schema_of(target: str) -> Any:
    """The schema of an operator called `torch.ops.NAMESPACE.NAME.OVERLOAD`, None where torch has none."""
    namespace, _, rest = target.removeprefix("torch.ops.").partition(".")
    name, _, overload = rest.partition(".")
    if namespace == "quantized_decomposed":
        with suppress(ImportError):
            importlib.import_module("torch.ao.quantization.fx._decomposed")  # where they are made known
    try:
        return torch._C._get_schema(f"{namespace}::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        return None


@cache
def _seeded(namespace: str, name: str, overload: str) -> bool:
    try:
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError:
        return True
    return torch.Tag.nondeterministic_seeded in operator.tags


def _why_not_schema(name: str, schema: Any) -> str | None:
    for place, argument in enumerate(schema.arguments):
        if not _VALUES.fullmatch(str(argument.real_type)):
            return f"takes a {argument.real_type}"
        writes = argument.alias_info is not None and argument.alias_info.is_write
        own = name in _RUNNING and argument.name.startswith("running_")
        if writes and not own and not (place == 0 and _in_place(name)):
            return f"writes into its argument {argument.name}"
    if not all(_VALUES.fullmatch(str(each.real_type)) for each in schema.returns):
        return "gives something that is neither tensor nor number"
    kinds = " ".join(str(each.real_type) for each in (*schema.arguments, *schema.returns))
    if "Tensor" not in kinds and name not in _CHECKING:
        return "has nothing to do with tensors"
    if not schema.returns and name not in _CHECKING and not _in_place(name):
        return "computes nothing"
    return None


def _in_place(name: str) -> bool:
    return name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))


def _why_not_kinds(inputs: Sequence[Mapping[str, Any]], first: Sequence[tuple[str, ...]]) -> str | None:
    kinds = [next(iter(each["arg"])) for each in inputs]
    if len(kinds) < len(first) or any(k not in wanted for k, wanted in zip(kinds, first, strict=False)):
        return f"is given arguments of the kinds {', '.join(kinds[: len(first)]) or 'none'}"
    for kind in kinds[len(first) :]:
        if kind in ("as_graph", "as_operator", "as_custom_obj", "as_string_to_argument"):
            return f"is given an argument of the kind {kind}"
    return None


def _why_not_words(inputs: Sequence[Mapping[str, Any]], known: frozenset[str]) -> str | None:
    for each in inputs:
        kind, value = next(iter(each["arg"].items()))
        if kind in ("as_string", "as_strings") and value not in known:
            return f"is given the words {str(value)[:40]!r}"
    return None
