"""Codes into a table of values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tersor.maths.bits import pack, unpack
from tersor.maths.levels import Table, bits_for
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class Codebook(Weight):
    """`scale * table[code]`, codes packed without gaps in the bits that the table's length asks for.

    The codes are those of the weight's matrix (rows, c), `maths.unfold` row after row; each row is cut into runs of `run`
    columns. table: float32 (n,), ascending; scale: (rows or 1, runs) float32, or int8: the exponents of powers of two.
    Value: `float32(scale) * table[code]`. Cost: bits / 8 bytes a value, the scales and the table.
    """

    packed: Tensor
    table: Tensor
    scale: Tensor
    run: int
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def bits(self) -> int:
        """Of a code."""
        return bits_for(self.table.numel())

    @property
    def rows(self) -> int:
        """Of the matrix."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]

    @property
    def factors(self) -> Tensor:
        """The scales as float32."""
        return torch.exp2(self.scale.float()) if self.scale.dtype == torch.int8 else self.scale

    def dense(self) -> Tensor:
        codes = unpack(self.packed, self.bits, prod(self.shape)).reshape(self.rows, -1)
        return self.shaped(self.wide(self.factors, codes) * self.table[codes.long()])

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.packed, self.table, self.scale))

    def nearest(self, latent: Tensor) -> Codebook:
        matrix = to_matrix(latent.detach(), self.groups, self.transposed).flatten(0, 1)
        grid = Table(self.factors.double(), self.table.double(), self.run)
        return replace(self, packed=pack(grid.codes(matrix).to(torch.uint8), self.bits))

    def rescaled(self, factors: Tensor) -> Codebook | None:
        own = len(self.scale) == self.rows and self.scale.is_floating_point()
        return replace(self, scale=self.scale * factors.float()[:, None]) if own else None

    def wide(self, t: Tensor, like: Tensor) -> Tensor:
        """(rows or 1, runs) -> (rows, c)."""
        return t.repeat_interleave(self.run, 1)[:, : like.shape[1]].expand(like.shape)

    def shaped(self, rows: Tensor) -> Tensor:
        """The parameter whose matrix is `rows` (rows, c)."""
        return from_matrix(rows.reshape(self.groups, -1, rows.shape[1]), self.shape, self.groups, self.transposed)


def codebook(
    codes: Tensor, grid: Table, shape: tuple[int, ...], groups: int, transposed: bool, shifted: bool = False
) -> Codebook:
    """The weight of `shape` whose matrix (rows, c) has these `codes` on `grid`. shifted: scales are powers of two."""
    table, scale = grid.listed.float(), grid.scale.float()
    if scale.numel() and (scale == scale.reshape(-1)[0]).all() and scale.shape[1] == 1:
        scale = scale[:1].clone()  # one for all rows
    if shifted:
        scale = scale.log2().round().clamp(-128, 127).to(torch.int8)
    packed = pack(codes.to(torch.uint8), bits_for(table.numel()))
    return Codebook(packed, table, scale, grid.run, tuple(shape), groups, transposed)
