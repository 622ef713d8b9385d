"""Fold batch norms into the matrix before them.

In evaluation a batch norm is `s * y + t` with `s = gamma / sqrt(var + eps)` and `t = beta - mean * s`. Where it reads a
convolution or linear `y = W x + b` that nobody else reads, `W' = diag(s) W` and `b' = s * b + t` give the same outputs.
Computed in float64. A norm that reads anything else stays.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from tersor.graph.model import Model
from tersor.graph.operators import argument, aten
from tersor.site import Matrix, matrix_of

_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)


def fold_norms(model: Model) -> Model:
    """The same function with every foldable batch norm gone."""
    model = model.copy()
    for norm, matrix in foldable(model):
        _fold(model, norm, norm.args[0], matrix)
    model.graph.eliminate_dead_code()
    model.module.delete_all_unused_submodules()
    model.module.recompile()
    return model


def row_scales(model: Model) -> dict[str, Tensor]:
    """By weight name, what folding multiplies the rows of its matrix with, (rows,) float64."""
    return {matrix.weight: _affine(model, norm)[0] for norm, matrix in foldable(model)}


def foldable(model: Model) -> list[tuple[fx.Node, Matrix]]:
    """The batch norms that can be folded, each with the matrix before it."""
    found = []
    for norm in (n for n in model.graph.nodes if n.target in _NORMS):
        matrix = matrix_of(model, norm.args[0])
        if matrix is not None and len(norm.args[0].users) == 1 and _used_once(model, norm.args[0], matrix):
            found.append((norm, matrix))
    return found


def _fold(model: Model, norm: fx.Node, producer: fx.Node, matrix: Matrix) -> None:
    scale, shift = _affine(model, norm)
    weight = model.tensor(matrix.weight)
    model.assign(matrix.weight, (weight.double() * _along_rows(scale, weight, matrix)).to(weight.dtype))
    bias = shift if matrix.bias is None else shift + scale * model.tensor(matrix.bias).double()
    if matrix.bias is None:
        _add_bias(model, producer, matrix, bias.to(weight.dtype))
    else:
        model.assign(matrix.bias, bias.to(weight.dtype))
    for user in [norm] if norm.target is aten.batch_norm.default else list(norm.users):
        if user is norm or (user.target is operator.getitem and user.args[1] == 0):
            user.replace_all_uses_with(producer)


def _affine(model: Model, norm: fx.Node) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (
        model.tensor(str(node.target)).double() if node is not None else None for node in norm.args[1:5]
    )
    eps = norm.args[6] if norm.target is _NORMS[0] else norm.args[7]
    assert mean is not None
    assert var is not None
    scale = (1.0 if gamma is None else gamma) / torch.sqrt(var + eps)
    return scale, (0.0 if beta is None else beta) - mean * scale


def _along_rows(scale: Tensor, weight: Tensor, matrix: Matrix) -> Tensor:
    if matrix.transposed:
        per_group = scale.reshape(matrix.groups, 1, -1).expand(-1, weight.shape[0] // matrix.groups, -1)
        return per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def _add_bias(model: Model, producer: fx.Node, matrix: Matrix, bias: Tensor) -> None:
    owner, _, _ = matrix.weight.rpartition(".")
    name = f"{owner}.bias" if owner else "bias"
    model.module.get_submodule(owner).register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    weight_node = producer.args[1]
    assert isinstance(weight_node, fx.Node)
    with model.graph.inserting_after(weight_node):
        node = model.graph.get_attr(name)
    if "val" in weight_node.meta:
        node.meta["val"] = weight_node.meta["val"].new_empty(bias.shape)
    producer.args = (*producer.args[:2], node, *producer.args[3:])


def _used_once(model: Model, producer: fx.Node, matrix: Matrix) -> bool:
    """Whether weight and bias belong to `producer` alone: a shared weight must not take on one norm's scale."""
    ours = {matrix.weight, matrix.bias} - {None}
    pointers = {model.tensor(str(name)).data_ptr() for name in ours}
    readers = {
        user
        for node in model.graph.nodes
        if node.op == "get_attr" and model.tensor(str(node.target)).data_ptr() in pointers
        for user in node.users
    }
    return readers == {producer} and argument(producer, 1, "weight", None) is not None
