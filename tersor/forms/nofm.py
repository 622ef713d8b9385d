"""At most n values in every m consecutive columns: the values and where in the run they stand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tersor.maths.bits import pack, unpack
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.weight import Weight


@dataclass(frozen=True, eq=False)
class PackedNofM(Weight):
    """`values` (float32), n for each run of m columns of the weight's matrix (rows, c), row after row, exact zeros elsewhere.

    `places` holds the position of each value inside its run, ascending, in `ceil(log2 m)` bits, packed without gaps. A
    last run of l < m columns has min(n, l) values. A run with fewer than n nonzero values stores zeros too. Cost: 4 +
    ceil(log2 m) / 8 bytes a value: below a `Bitmask` where n ceil(log2 m) < m and the runs are full.
    """

    values: Tensor
    places: Tensor
    n: int
    m: int
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    def dense(self) -> Tensor:
        rows, columns = self._size()
        out = torch.zeros(rows, columns, device=self.values.device)
        out.scatter_(1, self._columns(), self.values.reshape(rows, -1))
        return self._shaped(out)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.values, self.places))

    def nearest(self, latent: Tensor) -> PackedNofM:
        matrix = to_matrix(latent.detach().float(), self.groups, self.transposed).flatten(0, 1)
        return replace(self, values=matrix.gather(1, self._columns()).flatten())

    def _size(self) -> tuple[int, int]:
        rows = self.shape[1] * self.groups if self.transposed else self.shape[0]
        return rows, torch.Size(self.shape).numel() // rows

    def _columns(self) -> Tensor:
        """(rows, values a row): the column of each value."""
        rows, columns = self._size()
        starts = _starts(columns, self.n, self.m).to(self.values.device)
        places = unpack(self.places, _bits(self.m), rows * len(starts)).long()
        return places.reshape(rows, -1) + starts

    def _shaped(self, rows: Tensor) -> Tensor:
        return from_matrix(rows.reshape(self.groups, -1, rows.shape[1]), self.shape, self.groups, self.transposed)


def n_of_m(value: Tensor, m: int, groups: int = 1, transposed: bool = False) -> PackedNofM:
    """`value` (a parameter of two axes or more, none empty) with the smallest n that loses nothing."""
    rows = to_matrix(value.float(), groups, transposed).flatten(0, 1)
    runs = torch.nn.functional.pad(rows != 0, (0, -rows.shape[1] % m)).unflatten(1, (-1, m))
    n = max(1, int(runs.sum(2).max()))
    # Nonzero ones first, then the earliest others, so that a short last run is filled from its own columns.
    chosen = runs.to(torch.uint8).argsort(dim=2, descending=True, stable=True)[:, :, :n].sort(2).values
    places = chosen.flatten(1)[:, : len(_starts(rows.shape[1], n, m))]
    columns = places + _starts(rows.shape[1], n, m)
    packed = pack(places, _bits(m))
    return PackedNofM(rows.gather(1, columns).flatten(), packed, n, m, tuple(value.shape), groups, transposed)


def _starts(columns: int, n: int, m: int) -> Tensor:
    """The first column of the run of each value of a row."""
    full, left = divmod(columns, m)
    return torch.tensor(
        [run * m for run in range(full) for _ in range(n)] + [full * m] * min(n, left), dtype=torch.long
    )


def _bits(m: int) -> int:
    return max(1, (m - 1).bit_length())
