"""Grids for activations from histograms: `real = scale * (code - zero)`, codes 0 .. 2^bits - 1, zero on the grid.

Each function takes `counts` (n,), `edges` (n + 1,), the extremes `low` and `high`, and gives (scale, zero). Unsigned
codes, because the fast integer kernels multiply unsigned activations with signed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STEPS = 30
TOLERATED = 10.0
HALFWAY = 0.01  # of a code
SHRUNK = (1.0, 0.85, 0.7, 0.57, 0.45, 0.35, 0.27, 0.2, 0.14)
FINER = (0.88, 0.94, 1.06)
RIDGE = 1e-3  # of the mean square
NARROWEST = 0.1  # share of the whole range, below which a percentile is not believed


def minmax(counts: Tensor, edges: Tensor, low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """The grid that just reaches the extremes."""
    return _grid(low, high, bits)


def percentile(
    counts: Tensor, edges: Tensor, low: float, high: float, bits: int = 8, share: float = 0.9999
) -> tuple[float, int]:
    """The grid that holds the middle `share` of the values."""
    total = counts.double().cumsum(0)
    if total.numel() == 0 or total[-1] <= 0:
        return _grid(low, high, bits)
    outside = (1 - share) / 2 * total[-1]
    first = int((total <= outside).sum())
    last = int((total < total[-1] - outside).sum())
    return _grid(max(low, float(edges[first])), min(high, float(edges[min(last, counts.numel() - 1) + 1])), bits)


def mse(counts: Tensor, edges: Tensor, low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """The grid of least mean squared error over the histogram, out of STEPS shrunken ends each, one after the other."""

    def error(ends: tuple[float, float]) -> float:
        return _squared_error(counts, edges, _grid(*ends, bits), bits)

    return _grid(*_shrunken(low, high, error), bits)


def entropy(counts: Tensor, edges: Tensor, low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """The grid whose codes say most about the distribution: least Kullback-Leibler divergence, ends as in `mse`.

    Of the histogram with what lies outside moved into its last bins, from the same with each code's share spread over the bins
    that it stands for and that hold anything. Source: Migacz 2017, 8-bit Inference with TensorRT.
    """
    centres, held = (edges[1:] + edges[:-1]).double() / 2, counts.double()
    if held.sum() <= 0:
        return _grid(low, high, bits)

    def divergence(ends: tuple[float, float]) -> float:
        inside = (centres >= ends[0]) & (centres <= ends[1]) & (held > 0)
        if not bool(inside.any()):
            return float("inf")
        first, last = int(inside.nonzero()[0]), int(inside.nonzero()[-1])
        kept = held[first : last + 1]
        clipped = kept.clone()
        clipped[0] += held[:first].sum()
        clipped[-1] += held[last + 1 :].sum()
        scale, zero = _grid(*ends, bits)
        codes = (centres[first : last + 1] / scale + zero).round().clamp(0, 2**bits - 1).long()
        full = (kept > 0).double()
        mass, bins = (torch.zeros(2**bits, dtype=torch.float64).scatter_add(0, codes, t) for t in (kept, full))
        spread = full * (mass / bins.clamp_min(1))[codes]
        p, q = clipped / clipped.sum(), spread / spread.sum()
        some = p > 0  # there q is not zero either: the last bins are full
        return float((p[some] * (p[some] / q[some]).log()).sum())

    return _grid(*_shrunken(low, high, divergence), bits)


def _shrunken(low: float, high: float, cost: Callable[[tuple[float, float]], float]) -> tuple[float, float]:
    """The ends of least cost, out of STEPS shrunken ones each, one after the other."""
    shrunk = [1 - 0.9 * i / STEPS for i in range(STEPS)]
    best = (low, high)
    for _ in range(2):
        best = min([best, *((best[0], high * f) for f in shrunk)], key=cost)
        best = min([best, *((low * f, best[1]) for f in shrunk)], key=cost)
    return best


def robust(counts: Tensor, edges: Tensor, low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """The grid of the middle 99.99 %, unless that is a small part of the range (NARROWEST), or what it clips costs more
    than TOLERATED times the least squared error: then the grid of least squared error.

    Against `mse` and `minmax`, by divergence from the original's outputs, the percentile did best on a residual and on a
    speech network and was within the noise of `mse` on MobileNet, although its squared error is up to 7 times the least:
    squared error counts the many small channels of
    an activation as much as the few large ones that later layers read. Where a few huge values carry meaning, as in the
    residual streams of language models, or where a histogram has missed most of what is not zero, it would cut off what
    matters.
    """
    narrow, careful = percentile(counts, edges, low, high, bits), mse(counts, edges, low, high, bits)
    error, least = (_squared_error(counts, edges, grid, bits) for grid in (narrow, careful))
    believed = narrow[0] >= NARROWEST * minmax(counts, edges, low, high, bits)[0]
    return narrow if believed and error <= TOLERATED * least else careful


def least_damage(
    readers: Sequence[tuple[Tensor, Tensor, Tensor]], careful: tuple[float, int], low: float, high: float, bits: int
) -> tuple[float, int]:
    """The grid after which the matrices that read the activation, fitted anew to what they then see, come nearest to their
    outputs: `careful`, or the best of ranges that are shrunk in about a dozen ways.

    readers: of each matrix its inputs x (groups, n, c), its weight (groups, r, c) and what its outputs are worth (groups, r).
    The measure is `sum_i g_i min_v E (w_i x - v q(x))^2`, v with a bias. Cost for each grid: n c^2 + c^3 operations a group.
    Matters below 6 bits: squared error alone clips what the next layer needs most.
    """

    def damage(grid: tuple[float, int]) -> float:
        scale, zero = grid
        total = 0.0
        for x, w, fisher in readers:
            x = x.double()
            seen = scale * ((x / scale + zero).round().clamp(0, 2**bits - 1) - zero)
            seen = torch.cat([seen, torch.ones_like(seen[:, :, :1])], 2)
            wanted = x @ w.double().mT
            gram, cross = seen.mT @ seen, wanted.mT @ seen
            gram = gram + RIDGE * torch.diag_embed(
                gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(gram.shape[:2])
            )
            left = wanted - seen @ torch.linalg.solve(gram, cross.mT)
            total += float((fisher * left.square().mean(1)).sum())
        return total

    def shrunk(share: float) -> tuple[float, int]:
        return _grid(low * share, high * share, bits)

    best = min(SHRUNK, key=lambda share: damage(shrunk(share)))
    return min([careful, shrunk(best), *(shrunk(best * more) for more in FINER)], key=damage)


def passing(rounded: Tensor, x: Tensor) -> Tensor:
    """`rounded`, with the gradient of `x`: straight through."""
    return rounded.detach() + (x - x.detach()) if x.requires_grad else rounded


def by_position(x: Tensor, bits: int) -> Tensor:
    """Each position (..., c) of x on a symmetric grid of its own, as compressed-tensors makes them while it runs ("token",
    dynamic): 2^bits codes over twice the largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
    scale = torch.where(scale > 0, scale, 1.0)
    return (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def _squared_error(counts: Tensor, edges: Tensor, grid: tuple[float, int], bits: int) -> float:
    scale, zero = grid
    centres = (edges[1:] + edges[:-1]).double() / 2
    codes = (centres / scale + zero).round().clamp(0, 2**bits - 1)
    return float(((scale * (codes - zero) - centres).square() * counts.double()).sum())


def _grid(low: float, high: float, bits: int) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**bits - 1
    scale = float(torch.tensor((high - low) / top).float())
    if scale < 1e-36:
        return 1.0, 0
    zero = -low / scale
    if zero > 1 and abs(zero % 1 - 0.5) < HALFWAY:
        # A range that is symmetric about zero, such as normalised pixels. These lie on a grid of 255 steps themselves,
        # so that all of them would fall half-way between two codes, and runtimes break such ties in different ways.
        return float(torch.tensor(-low / int(zero)).float()), int(zero)
    return scale, min(top, max(0, round(zero)))
