"""Put what a fit decided into the graph itself: weights as packed codes, activations through their grids.

The module that comes out computes each stored weight from its codes in every call, and rounds activations where they are
read; torch exports, saves and loads it without Tersor, in as few bytes as the codes take. Values: exactly `Weight.dense()`,
and `scale * (clamp(round(x / scale + zero)) - zero)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, fx, nn

from tersor.forms.affine import Affine
from tersor.forms.codebook import Codebook
from tersor.forms.half import Half
from tersor.graph.codes import leaving, read_as_codes
from tersor.graph.model import Model
from tersor.maths.bits import unpack
from tersor.site import matrices
from tersor.target import Compressed, Grid

Stored = Affine | Codebook | Half
STORED = (Affine, Codebook, Half)


def store_quantised(compressed: Compressed) -> Model:
    """The model with its quantised weights packed and its static feeds in the graph; other weights stay dense."""
    model = compressed.model.copy()
    grids = {name: feed for name, feed in compressed.feeds.items() if isinstance(feed, Grid)}
    _round(model, grids, {matrix.node for matrix in matrices(model)})
    _pack(model, {name: weight for name, weight in compressed.weights.items() if isinstance(weight, STORED)})
    model.graph.lint()
    model.module.recompile()
    return model


def _round(model: Model, grids: Mapping[str, Grid], readers: Collection[str]) -> None:
    leaves = leaving(model.graph)
    for node in list(model.graph.nodes):
        grid = grids.get(node.name)
        if grid is None:
            continue
        users = [
            user
            for user in node.users
            if (grid.stored and read_as_codes(node, user, readers, leaves))
            or (user.name in readers and user.args[0] is node)
        ]
        if not users:
            continue
        owner = f"grid_{node.name}"
        model.module.add_submodule(owner, _Rounded(grid))
        with model.graph.inserting_after(node):
            rounded = model.graph.call_module(owner, (node,))
        rounded.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, rounded)


def _pack(model: Model, weights: Mapping[str, Stored]) -> None:
    names = {(model.tensor(name).data_ptr(), model.tensor(name).shape): name for name in weights}
    made: dict[str, fx.Node] = {}
    gone: set[str] = set()
    for node in list(model.graph.nodes):
        if node.op != "get_attr" or not isinstance(held := model.tensor(str(node.target)), Tensor):
            continue
        name = names.get((held.data_ptr(), held.shape))
        if name is None:
            continue
        if name not in made:
            with model.graph.inserting_before(node):
                made[name] = _unpacking(model, name, weights[name])
        gone.add(str(node.target))
        node.replace_all_uses_with(made[name])
        model.graph.erase_node(node)
    for name in gone:
        owner, leaf = _owner(model, name)
        delattr(owner, leaf)


def _unpacking(model: Model, name: str, weight: Stored) -> fx.Node:
    """The node that gives a weight, from tensors beside the one it had."""
    (owner, leaf), place = _owner(model, name), name.rpartition(".")[0]
    parts = []
    for part, value in _parts(weight).items():
        owner.register_buffer(f"{leaf}_{part}", value.clone())
        parts.append(model.graph.get_attr(f"{place}.{leaf}_{part}".lstrip(".")))
        parts[-1].meta["val"] = value
    unpack_it = f"{name.replace('.', '_')}_unpack"
    model.module.add_submodule(unpack_it, _module(weight))
    made = model.graph.call_module(unpack_it, tuple(parts))
    made.meta["val"] = model.tensor(name)
    return made


def _parts(weight: Stored) -> dict[str, Tensor]:
    """What is kept of a weight, in the order in which its module takes it."""
    if isinstance(weight, Affine):
        return {"codes": weight.packed, "scale": weight.scale, "offset": weight.zero.float() + 2 ** (weight.bits - 1)}
    if isinstance(weight, Codebook):
        return {"codes": weight.packed, "scale": weight.scale, "table": weight.table}
    return {"half": weight.values}


def _module(weight: Stored) -> nn.Module:
    if isinstance(weight, Affine):
        return _Unpack(weight)
    return _LookUp(weight) if isinstance(weight, Codebook) else _Widen()


def _owner(model: Model, name: str) -> tuple[nn.Module, str]:
    place, _, leaf = name.rpartition(".")
    return model.module.get_submodule(place), leaf


class _Rounded(nn.Module):
    """An activation through its grid."""

    def __init__(self, grid: Grid):
        super().__init__()
        self._grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return self._grid.round(x)


class _Unpack(nn.Module):
    """The weight from its packed unsigned codes, its scales, and what its zeros are among the codes."""

    def __init__(self, form: Affine):
        super().__init__()
        self._form = replace(form, **dict.fromkeys(("packed", "scale", "zero"), torch.empty(0)))

    def forward(self, packed: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        form = self._form
        codes = unpack(packed, form.bits, prod(form.shape)).reshape(form.rows, -1)
        if scale.shape[1] > 1:  # one for each run of columns
            scale, offset = form.wide(scale, codes), form.wide(offset.expand_as(scale), codes)
        return form.shaped(scale * (codes - offset))


class _LookUp(nn.Module):
    """The weight from its packed codes, its scales and its table."""

    def __init__(self, form: Codebook):
        super().__init__()
        self._form, self._bits = replace(form, packed=torch.empty(0), table=torch.empty(0)), form.bits

    def forward(self, packed: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        form = self._form
        codes = unpack(packed, self._bits, prod(form.shape)).reshape(form.rows, -1)
        factors = torch.exp2(scale.float()) if scale.dtype == torch.int8 else scale
        if scale.shape[1] > 1:  # one for each run of columns
            factors = form.wide(factors, codes)
        return form.shaped(factors * table[codes.long()])


class _Widen(nn.Module):
    """The weight in float32."""

    def forward(self, half: Tensor) -> Tensor:
        return half.float()
