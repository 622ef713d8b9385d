"""Every linear operator as one matrix: weights as `(groups, rows, columns)`, inputs as `(groups, positions, columns)`.

For a linear, a convolution and a transposed convolution alike, `unfold(x) @ to_matrix(w).mT` is the output without its
bias: `(groups, positions, rows)`, positions running over the batch and then the output grid, row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def to_matrix(w: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """`(groups, rows / groups, columns)` of a weight; columns run over (input channel, *kernel).

    `w` is (rows, columns), (out, in / groups, *kernel), or, transposed, (in, out / groups, *kernel).
    """
    if not transposed:
        return w.reshape(groups, w.shape[0] // groups, -1)
    split = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    return split.transpose(1, 2).reshape(groups, w.shape[1], -1)


def from_matrix(m: Tensor, shape: Sequence[int], groups: int = 1, transposed: bool = False) -> Tensor:
    """The inverse of `to_matrix`: a weight of `shape` from `(groups, rows / groups, columns)`."""
    if not transposed:
        return m.reshape(tuple(shape))
    split = m.reshape(groups, shape[1], shape[0] // groups, prod(shape[2:]))
    return split.transpose(1, 2).reshape(tuple(shape))


def unfold(
    x: Tensor,
    kernel: Sequence[int] | None = None,
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
    at: Tensor | None = None,
) -> Tensor:
    """The input patches `(groups, positions, columns)` that the rows of `to_matrix` are multiplied with.

    `kernel` None is a linear: `x` is (..., columns). Else `x` is (batch, channels, *space) with one entry of `stride`,
    `padding` and `dilation` per axis of space (empty: 1, 0, 1). `at` picks positions (flat indices over batch and
    output grid) before anything is copied, so that sampling a few positions of a large activation is cheap.
    """
    if kernel is None:
        rows = x.reshape(1, -1, x.shape[-1])
        return rows if at is None else rows[:, at]
    rank = len(kernel)
    stride, padding, dilation = _filled(stride, 1, rank), _filled(padding, 0, rank), _filled(dilation, 1, rank)
    if transposed:
        x = _stuffed(x, kernel, stride, padding, dilation, _filled(output_padding, 0, rank))
        patches = _windows(x, kernel, (1,) * rank, dilation).flip(tuple(range(-rank, 0)))
    else:
        x = F.pad(x, [p for axis in reversed(padding) for p in (axis, axis)]) if any(padding) else x
        patches = _windows(x, kernel, stride, dilation)
    return _grouped(patches, groups, rank, at)


def positions(
    shape: Sequence[int],
    kernel: Sequence[int] | None = None,
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    transposed: bool = False,
    output_padding: Sequence[int] = (),
) -> int:
    """How many positions `unfold` gives for an input of `shape`."""
    if kernel is None:
        return prod(shape[:-1])
    rank = len(kernel)
    settings = zip(
        shape[2:],
        kernel,
        _filled(stride, 1, rank),
        _filled(padding, 0, rank),
        _filled(dilation, 1, rank),
        _filled(output_padding, 0, rank),
        strict=True,
    )
    if transposed:
        return shape[0] * prod((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in settings)
    return shape[0] * prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in settings)


def _filled(given: Sequence[int], default: int, rank: int) -> tuple[int, ...]:
    return tuple(given) if given else (default,) * rank


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """A view (batch, channels, *output grid, *kernel) of the windows of `x`."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return x


def _stuffed(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    extra: Sequence[int],
) -> Tensor:
    """The input of a transposed convolution with zeros between and around, over which a plain convolution slides."""
    space = x.shape[2:]
    stuffed = x.new_zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(space, stride, strict=True))))
    stuffed[:, :, *(slice(None, None, s) for s in stride)] = x
    pads = [(d * (k - 1) - p, d * (k - 1) - p + e) for k, p, d, e in zip(kernel, padding, dilation, extra, strict=True)]
    return F.pad(stuffed, [p for pair in reversed(pads) for p in pair])


def _grouped(patches: Tensor, groups: int, rank: int, at: Tensor | None) -> Tensor:
    """(groups, positions, columns) from (batch, channels, *grid, *kernel)."""
    batch, channels = patches.shape[:2]
    grid, kernel = patches.shape[2 : 2 + rank], patches.shape[2 + rank :]
    spaced = patches.movedim(1, 1 + rank)  # (batch, *grid, channels, *kernel)
    if at is None:
        rows = spaced.reshape(batch * prod(grid), groups, -1)
    else:
        index = torch.unravel_index(at, (batch, *grid))
        rows = spaced[index].reshape(len(at), groups, -1)
    return rows.reshape(-1, groups, channels // groups * prod(kernel)).transpose(0, 1)
