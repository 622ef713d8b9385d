"""What each weight is worth on a given support, exactly, and a better support from that.

For one row on the support S: `v = (w H)_S (H_SS)^-1`; dropping k costs `v_k^2 / [H_SS^-1]_kk`, and adding j gains
`(w H - v H_S:)_j^2 / (H_jj - H_jS H_SS^-1 H_Sj)`, all other weights of the row moving along each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.maths.damage import by_row
from tersor.maths.pattern import Pattern
from tersor.maths.solve import solve

RIDGE = 1e-7
DEPENDENT = 1e-6  # below this share of its variance, an input tells nothing that those of the support do not


def settled(w: Tensor, h: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Values and worth, both (groups, rows, c), of the least-squares fit to `w` on the support `kept`.

    Worth is what dropping a kept weight costs and what adding another gains, in `d H d^T` of its row. h: (groups, c,
    c). Cost: |S|^2 c operations a row.
    """
    values, worth = torch.zeros_like(w, dtype=torch.float64), torch.zeros_like(w, dtype=torch.float64)
    pull = w.double() @ h
    for g, gram in enumerate(h):
        for i in range(w.shape[1]):
            values[g, i], worth[g, i] = _one(pull[g, i], gram, kept[g, i])
    return values, worth


def _one(pull: Tensor, h: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    inside, outside = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
    values, worth = torch.zeros_like(pull), torch.zeros_like(pull)
    rows = h[inside]
    corner, side = rows[:, inside], rows[:, outside]
    inverse = solve(corner[None], torch.eye(len(inside), dtype=h.dtype)[None], RIDGE)[0]
    v = inverse @ pull[inside]
    values[inside] = v
    worth[inside] = v.square() / inverse.diagonal().clamp_min(1e-300)
    power = h.diagonal()[outside]
    left = power - ((inverse @ side) * side).sum(0)
    gain = (pull[outside] - v @ side).square() / left.clamp_min(1e-300)
    worth[outside] = torch.where(left > DEPENDENT * power, gain, 0.0)
    return values, worth


def exchanged(
    w: Tensor, h: Tensor, weigh: Tensor, kept: Tensor, pattern: Pattern, rounds: int
) -> tuple[Tensor, Tensor]:
    """Values and support, both (groups, rows, c), after up to `rounds` rounds of exchanging weights.

    In each, the pattern chooses again by worth, times `weigh` (groups, rows); a round that does not lower the damage is
    undone, and the next prefers what is there by a factor of four more. Exact zeros of `w` are never chosen.
    """
    values, worth = settled(w, h, kept)
    least = _cost(values - w, h, weigh)
    favour = 1.0
    for _ in range(rounds):
        scores = weigh[:, :, None] * worth * torch.where(kept, favour, 1.0) * (w != 0)
        fresh = pattern.kept(scores) & (w != 0)
        if torch.equal(fresh, kept):
            break
        fresh_values, fresh_worth = settled(w, h, fresh)
        cost = _cost(fresh_values - w, h, weigh)
        if cost < least:
            values, worth, kept, least = fresh_values, fresh_worth, fresh, cost
        else:
            favour *= 4
    return values, kept


def _cost(delta: Tensor, h: Tensor, weigh: Tensor) -> float:
    return float((weigh * by_row(delta, h)).sum())
