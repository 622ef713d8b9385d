"""Put a batch norm behind a convolution that changes nothing: the inverse of folding.

A network trains better with batch norms, and profiling and pruning want them folded. A norm with the statistics `mean_i` and
`var_i` that the outputs of a convolution have, `gamma_i = sqrt(var_i + eps)` and `beta_i = mean_i`, is the identity in
evaluation. In training it keeps every channel where the calibration data had it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, fx, nn

from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.site import Matrix, matrices
from tersor.target import Compressed

EPS, MOMENTUM = 1e-5, 0.1
_NORM = aten.batch_norm.default


def places(model: Model, names: Collection[str]) -> list[Matrix]:
    """Those of the matrices `names` that a norm can stand behind: convolutions whose weight is applied in one place, for
    several would need statistics of their own."""
    found = matrices(model)
    several = {m.weight for m in found if sum(n.weight == m.weight for n in found) > 1}
    return [m for m in found if m.name in names and m.convolution is not None and m.weight not in several]


def insert_norms(compressed: Compressed, moments: Mapping[str, tuple[Tensor, Tensor]]) -> Compressed:
    """The same function with a batch norm behind each convolution that `moments` has, by node name: mean and variance of
    every channel of what it gives. Where that was rounded, what the norm gives is."""
    model = compressed.model.copy()
    nodes = {node.name: node for node in model.graph.nodes}
    norms = {
        matrix.node: _insert(model, nodes[matrix.node], matrix, *moments[matrix.node])
        for matrix in matrices(model)
        if matrix.node in moments
    }
    model.graph.lint()
    model.module.recompile()
    feeds = {norms.get(name, name): feed for name, feed in compressed.feeds.items()}
    return replace(compressed, model=model, feeds=feeds)


def _insert(model: Model, node: fx.Node, matrix: Matrix, mean: Tensor, var: Tensor) -> str:
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
    return made.name
