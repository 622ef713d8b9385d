"""Integer codes on affine grids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tersor.maths.bits import pack, unpack
from tersor.maths.grid import Grid
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Affine(Weight):
    """`scale * (code - zero)`, codes of `bits` bits packed without gaps, signed, from `low` to 2^(bits - 1) - 1.

    The codes are those of the weight's matrix (rows, c), `maths.unfold` row after row; each row is cut into runs of
    `run` columns. scale: float32 (rows or 1, runs or 1); zero: int8 (float32 on the binary grid), broadcasts to scale.
    Value: `float32(scale) * float32(code - zero)`, exact and the same everywhere. Cost: bits / 8 bytes a value, and the
    scales.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    low: int
    run: int
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def axis(self) -> int:
        """The parameter's axis that the rows of `scale` run along, where there is one scale a row and no `groups`."""
        return 1 if self.transposed else 0

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    @property
    def codes(self) -> Tensor:
        """int8, in the parameter's shape."""
        return self.shaped(self._codes()).to(torch.int8)

    def dense(self) -> Tensor:
        codes = self._codes().float()
        zero = self.zero.float().expand(self.scale.shape)
        return self.shaped(self.wide(self.scale, codes) * (codes - self.wide(zero, codes)))

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.packed, self.scale, self.zero))

    def nearest(self, latent: Tensor) -> Affine:
        matrix = to_matrix(latent.detach(), self.groups, self.transposed).flatten(0, 1)
        zero = self.zero.double().expand(self.scale.shape)
        grid = Grid(self.scale.double(), zero, self.run, self.low, 2 ** (self.bits - 1) - 1)
        return replace(self, packed=_packed(grid.codes(matrix), self.bits))

    def rescaled(self, factors: Tensor) -> Affine | None:
        own = len(self.scale) == self.rows
        return replace(self, scale=self.scale * factors.float()[:, None]) if own else None

    def through(self, latent: Tensor, scale: Tensor) -> Tensor:
        """The value nearest to `latent` on the grid with this `scale`, with gradients for both.

        Straight through the rounding; nothing flows where the grid ends. The scale's gradient is that of what rounding does,
        made as small as the number of values and codes asks for. Source: Esser et al. 2020, arXiv:1902.08153.
        """
        matrix = to_matrix(latent, self.groups, self.transposed).flatten(0, 1)
        high = 2 ** (self.bits - 1) - 1
        mild = (matrix.numel() / scale.numel() * max(1, high)) ** -0.5
        wide = self.wide(scale * mild + (scale - scale * mild).detach(), matrix)
        zero = self.wide(self.zero.float().expand(self.scale.shape), matrix)
        code = matrix / wide + zero
        code = (code + (code.round() - code).detach()).clamp(self.low, high)
        return self.shaped(wide * (code - zero))

    def _codes(self) -> Tensor:
        flat = unpack(self.packed, self.bits, prod(self.shape)).to(torch.int16) - 2 ** (self.bits - 1)
        return flat.reshape(self.rows, -1)

    def wide(self, t: Tensor, like: Tensor) -> Tensor:
        """(rows or 1, runs) -> (rows, c)."""
        return t.repeat_interleave(self.run, 1)[:, : like.shape[1]].expand(like.shape)

    def shaped(self, rows: Tensor) -> Tensor:
        """The parameter whose matrix is `rows` (rows, c)."""
        return from_matrix(rows.reshape(self.groups, -1, rows.shape[1]), self.shape, self.groups, self.transposed)


def affine(codes: Tensor, grid: Grid, bits: int, shape: tuple[int, ...], groups: int, transposed: bool) -> Affine:
    """The weight of `shape` whose matrix (rows, c) has these `codes` on `grid`."""
    zero = grid.zero.float() if grid.zero.frac().any() else grid.zero.to(torch.int8)
    if zero.numel() and (zero == zero.reshape(-1)[0]).all():
        zero = zero.reshape(-1)[:1].reshape(1, 1).clone()
    packed = _packed(codes, bits)
    return Affine(packed, grid.scale.float(), zero, bits, grid.low, grid.run, tuple(shape), groups, transposed)


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack((codes + 2 ** (bits - 1)).to(torch.uint8), bits)
