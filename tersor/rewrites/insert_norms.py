"""Put a batch norm behind a convolution that changes nothing: the inverse of folding.

A network trains better with batch norms, and profiling and pruning want them folded. For the outputs `y = W x + b` of a
convolution, `mean_i` and `var_i` follow from its Gram matrix (`W~ H W~^T` with the constant column), and a norm with these
statistics, `gamma_i = sqrt(var_i + eps)` and `beta_i = mean_i`, is the identity in evaluation. In training it keeps every
channel where the calibration data had it. Cost: r c^2 operations a matrix.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.maths.unfold import to_matrix
from tersor.profile import Facts, Profile
from tersor.site import Matrix, matrices

EPS, MOMENTUM = 1e-5, 0.1
_NORM = aten.batch_norm.default


def insert_norms(model: Model, profile: Profile, names: Collection[str]) -> Model:
    """The same function with a batch norm behind each convolution of `names`; `profile` holds their Gram matrices.

    A weight that is applied in several places gets none: the places would need statistics of their own.
    """
    model = model.copy()
    found = matrices(model)
    several = {m.weight for m in found if sum(n.weight == m.weight for n in found) > 1}
    nodes = {node.name: node for node in model.graph.nodes}
    for matrix in found:
        if matrix.name in names and matrix.convolution is not None and matrix.weight not in several:
            _insert(model, nodes[matrix.node], matrix, *_moments(model, matrix, profile.facts[matrix.name]))
    model.graph.lint()
    model.module.recompile()
    return model


def _moments(model: Model, matrix: Matrix, facts: Facts) -> tuple[Tensor, Tensor]:
    """Mean and variance of every output channel, float64."""
    w = to_matrix(model.tensor(matrix.weight), matrix.groups, matrix.transposed).double()
    bias = torch.zeros(w.shape[:2]) if matrix.bias is None else model.tensor(matrix.bias).reshape(w.shape[:2])
    w = torch.cat([w, bias.double()[..., None]], 2)
    mean = (w @ facts.gram[:, :, -1:])[..., 0]
    power = torch.einsum("gri,gij,grj->gr", w, facts.gram, w)
    return mean.reshape(-1), (power - mean.square()).clamp_min(0).reshape(-1)


def _insert(model: Model, node: fx.Node, matrix: Matrix, mean: Tensor, var: Tensor) -> None:
    owner = f"{matrix.name.replace('.', '_')}_norm"
    norm = nn.Module()
    model.module.add_submodule(owner, norm)
    for name, value in (("weight", (var + EPS).sqrt()), ("bias", mean)):
        norm.register_parameter(name, nn.Parameter(value.float(), requires_grad=False))
    for name, value in (("running_mean", mean), ("running_var", var)):
        norm.register_buffer(name, value.float())
    with model.graph.inserting_after(node):
        parts = [model.graph.get_attr(f"{owner}.{n}") for n in ("running_var", "running_mean", "bias", "weight")][::-1]
    for part in parts:
        part.meta["val"] = model.tensor(str(part.target))
    last = max(parts, key=list(model.graph.nodes).index)
    with model.graph.inserting_after(last):
        made = model.graph.call_function(_NORM, (node, *parts, False, MOMENTUM, EPS, True))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
