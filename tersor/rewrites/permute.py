"""Put the channels of a group into another order: the same function, other neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch

from tersor.errors import ModelError
from tersor.graph.model import Model
from tersor.maths.damage import quadratic
from tersor.maths.pattern import NofM
from tersor.maths.permutation import best_order
from tersor.maths.unfold import to_matrix
from tersor.profile import Profile
from tersor.site import Group, groups, matrices

TOLERANCE = 1e-4  # of the largest output


def permute(model: Model, orders: Mapping[str, Sequence[int]]) -> Model:
    """The same function with block `orders[group][i]` of each group where block i was, in every tensor.

    Raises `ModelError` where the outputs on the example change: some axis mixes the blocks in a way that depends on their
    order.
    """
    found = {group.name: group for group in groups(model)}
    small = model.copy()
    for name, order in orders.items():
        _permute(small, found[name], order)
    for before, after in zip(model.run(*model.example), small.run(*model.example), strict=True):
        if before.is_floating_point():
            apart = (before - after).abs().max() if before.numel() else torch.zeros(())
            if not bool(apart <= TOLERANCE * before.abs().max().clamp_min(1e-30)):
                raise ModelError(f"The order of {', '.join(orders)} matters to this model; leave it as it is.")
    return small


def arranged(model: Model, profile: Profile, pattern: NofM) -> Model:
    """The same function with channels in the order in which `pattern` costs the linear layers that read them least.

    Weighed by `g_i H_jj w^2`. Groups whose order matters, or whose blocks are not single columns, stay as they are.
    """
    found = {g.name: _order(model, profile, g, pattern) for g in groups(model) if g.refused is None}
    for name, order in found.items():
        if order is not None and order != list(range(len(order))):
            with suppress(ModelError):
                model = permute(model, {name: order})
    return model


def _permute(model: Model, group: Group, order: Sequence[int]) -> None:
    done: set[tuple[int, int]] = set()
    for tensor, axis, positions in dict.fromkeys((m.tensor, m.axis, m.positions) for m in group.members):
        value = model.tensor(tensor)
        if (value.data_ptr(), axis) in done:
            continue  # the same values under another name
        index = torch.arange(value.shape[axis])
        for to, source in zip(positions, (positions[b] for b in order), strict=True):
            index[list(to)] = torch.tensor(source, dtype=torch.long)
        model.assign(tensor, value.index_select(axis, index))
        done.add((model.tensor(tensor).data_ptr(), axis))


def _order(model: Model, profile: Profile, group: Group, pattern: NofM) -> list[int] | None:
    by_weight = {m.weight: m for m in matrices(model) if m.convolution is None}
    scores = []
    for member in group.members:
        if member.role == "reads" and member.tensor in by_weight and member.axis == 1:
            if [*member.positions] != [(i,) for i in range(model.tensor(member.tensor).shape[1])]:
                return None
            matrix = by_weight[member.tensor]
            facts = profile.facts[matrix.name]
            power = quadratic(facts.gram, free_bias=matrix.bias is not None).gram[0].diagonal()
            w = to_matrix(model.tensor(matrix.weight), 1)[0].double()
            scores.append(facts.fisher.double()[:, None] * power * w.square())
    return best_order(torch.cat(scores), pattern.n, pattern.m).tolist() if scores else None
