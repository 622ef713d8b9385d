"""Which scale to move from the channels of what layers read into their columns.

Columns j times s_j, and channel j divided by s_j, is the same function. A few channels that are far larger than the others
take the grid of an activation from all of them; their share of the error moves into the weights. Candidates:
`s_j = max|x_j|^a / max_i|W_ij|^(1 - a)` (SmoothQuant) and `s_j = rms(x_j)^a` (AWQ), each as powers of two, so that no float
is rounded by it. Sources: Xiao et al. 2022 (arXiv:2211.10438), Lin et al. 2023 (arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tersor.maths.grid import Integers, search

BALANCES = (0.5, 0.65, 0.8)  # exponents of SmoothQuant
SALIENCES = (0.25, 0.5, 0.75, 1.0)  # exponents of AWQ
FURTHEST = 10  # powers of two
VALUES = 1 << 17  # of the weights, on which candidates are compared


def best_scale(
    x: Tensor,
    w: Tensor,
    kind: Integers,
    read: Callable[[Tensor], Tensor],
    clearly: float,
    owner: Tensor | None = None,
    balances: Sequence[float] = BALANCES,
) -> Tensor | None:
    """By which to divide what gives the inputs x (positions, c) of weights w (r, c), channel j being given by `owner[j]`.

    Candidates are compared by the squared error of what the layers give, with some rows of w on the best grids of `kind`, and
    inputs as `read` rounds them; None unless the best leaves less than `clearly` of the error. Cost: a search for grids and
    a product a candidate.
    """
    owner = torch.arange(x.shape[1]) if owner is None else owner
    w = w[:: -(-w.numel() // VALUES)]
    wanted = x @ w.mT

    def lost(scale: Tensor) -> float:
        wide = scale[owner]
        divided, scaled = x / wide, w * wide
        rounded = search(scaled, divided.square().mean(0), kind).round(scaled)
        return float((read(divided) @ rounded.mT - wanted).square().sum())

    count = int(owner.max()) + 1
    loudest, strongest = (_largest(t.abs().amax(0), owner, count) for t in (x, w))
    power = _largest(x.square().mean(0).sqrt(), owner, count)
    candidates = [loudest**a / strongest ** (1 - a) for a in balances] + [power**a for a in SALIENCES]
    scales = [_powers_of_two(c, (loudest > 0) & (strongest > 0)) for c in candidates]
    errors = [lost(scale) for scale in scales]
    least = min(range(len(scales)), key=errors.__getitem__)
    return scales[least] if errors[least] < clearly * lost(torch.ones(count)) else None


def _powers_of_two(wanted: Tensor, alive: Tensor) -> Tensor:
    """`wanted`, with a geometric mean of one, at powers of two; one where nothing passes."""
    if not bool(alive.any()):
        return torch.ones_like(wanted)
    exponents = wanted.log2()
    exponents = (exponents - exponents[alive].mean()).round().clamp(-FURTHEST, FURTHEST)
    return torch.where(alive, exponents, 0.0).exp2()


def _largest(values: Tensor, owner: Tensor, count: int) -> Tensor:
    return torch.zeros(count).scatter_reduce(0, owner, values, "amax")
