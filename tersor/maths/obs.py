"""Structured optimal brain surgeon: remove blocks of columns, move the rest.

For `y = W x~` the damage of `V` is `1/2 tr(diag(g) (V - W) H (V - W)^T)`. Removing the columns `S` and moving the
others to their best values costs exactly `1/2 sum_i g_i W_iS (H^-1_SS)^-1 W_iS^T`, with the updates

    W    -= W_:S (H^-1_SS)^-1 H^-1_S:
    H^-1 -= H^-1_:S (H^-1_SS)^-1 H^-1_S:

so one nested greedy sweep gives the order of removal and the whole damage-against-width curve, and what it keeps is the
exact least-squares fit. Source: Hassibi and Stork 1992 (OBS); Kurtic et al. 2022, "The Optimal BERT Surgeon" (blocks).
Steps are gathered in panels, as in a blocked Cholesky decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tersor import deadline

PANEL = 64
"""Removed columns, after which what is left of `H^-1` is brought up to date."""


@dataclass(frozen=True)
class Reader:
    """One matrix that loses columns: `w` (r, c), `gram` (c, c) positive definite, `fisher` (r,), all float64.

    `blocks[b]` are the columns that go with block b; they are disjoint. A column in no block (the constant) stays.
    """

    w: Tensor
    gram: Tensor
    fisher: Tensor
    blocks: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Sweep:
    """`order`: blocks from the first to the last removed; `damage[k]` of having removed the first k, from k = 0 on."""

    order: tuple[int, ...]
    damage: tuple[float, ...]

    def kept(self, width: int) -> tuple[int, ...]:
        """The `width` blocks that stay, ascending."""
        return tuple(sorted(self.order[len(self.order) - width :]))


def damped(gram: Tensor, damping: float) -> Tensor:
    """`gram` (..., c + 1, c + 1) plus `damping` times its mean diagonal, on all but the constant column.

    Dead inputs (a zero on the diagonal) get the mean diagonal, so that the result is positive definite.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)[..., :-1]
    mean = diagonal.mean(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    extra = damping * mean + torch.where(diagonal <= 1e-12 * mean, mean, torch.zeros_like(mean))
    out = gram.clone()
    out.diagonal(dim1=-2, dim2=-1)[..., :-1] += extra
    return out


def solve(target: Tensor, gram: Tensor) -> Tensor:
    """`target @ gram^-1` for a symmetric positive definite `gram`, batched over leading axes."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool((info > 0).any()):
        return target @ torch.linalg.pinv(gram, hermitian=True)
    return torch.cholesky_solve(target.mT, factor).mT


def refit(w: Tensor, gram: Tensor, keep: Sequence[int] | Tensor) -> Tensor:
    """The least-damage `V` (r, c) whose columns outside `keep` are zero: `V_K = W H_:K H_KK^-1`. O(c^3 + r c^2)."""
    kept = torch.as_tensor(keep, dtype=torch.long, device=w.device)
    out = torch.zeros_like(w)
    out[:, kept] = solve(w @ gram[:, kept], gram[kept][:, kept])
    return out


def sweep(readers: Sequence[Reader]) -> Sweep:
    """Remove blocks one after the other, always the one that costs least summed over `readers`. O(r c^2 + c^3)."""
    states = [_State(reader) for reader in readers]
    count = len(readers[0].blocks)
    alive = torch.ones(count, dtype=torch.bool)
    order: list[int] = []
    damage = [0.0]
    for _ in range(count):
        deadline.check()
        scores = torch.stack([state.scores() for state in states]).sum(0)
        best = int(torch.where(alive, scores, torch.inf).argmin())
        order.append(best)
        damage.append(damage[-1] + max(0.0, float(scores[best])))
        alive[best] = False
        for state in states:
            state.remove(best)
    return Sweep(tuple(order), tuple(damage))


class _State:
    """`H^-1` and `A = W^T diag(g) W` of one reader, on the columns of its blocks, while these go.

    What removing a block costs is told by its own corners of both, which are exact after every step. The whole matrices lag
    behind by a panel of removed columns: with `P = H^-1_S:`, `R = (H^-1_SS)^-1 P` and `F = A_S: - 1/2 A_SS R`, a step takes
    `P^T R` from the one and `F^T R + R^T F` from the other, and many steps together are one product of matrices. Blocks of
    unequal size are padded, and the padding masked.
    """

    def __init__(self, reader: Reader):
        columns = torch.tensor([c for block in reader.blocks for c in block], dtype=torch.long)
        w = reader.w[:, columns]
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.gram))[columns[:, None], columns]
        self.energy = (w * reader.fisher[:, None]).mT @ w
        sizes = [len(block) for block in reader.blocks]
        widest, ends = max(sizes, default=0), list(accumulate(sizes))
        index = [[*range(end - size, end), *[0] * (widest - size)] for size, end in zip(sizes, ends, strict=True)]
        self.index = torch.tensor(index, dtype=torch.long).reshape(len(sizes), widest)
        self.real = torch.arange(widest) < torch.tensor(sizes, dtype=torch.long)[:, None]
        self.blocks = torch.arange(len(sizes))  # the number of each row of `index`, `real` and both corners
        self.row = {block: block for block in range(len(sizes))}
        self.count, self.gone = len(sizes), torch.zeros(len(columns), dtype=torch.bool)
        both = self.real[:, :, None] & self.real[:, None, :]
        rows, cols = self.index[:, :, None], self.index[:, None, :]
        filler = torch.diag_embed((~self.real).to(w.dtype))
        self.corner = torch.where(both, self.inverse[rows, cols], 0.0) + filler
        self.weighed = torch.where(both, self.energy[rows, cols], 0.0)
        self.panel = [
            w.new_empty(0, len(columns)) for _ in range(3)
        ]  # P, R and F of the last steps, one below the other

    def scores(self) -> Tensor:
        """(blocks,): the damage of removing each block next; 0 for those that are gone."""
        if self.corner.shape[-1] == 1:
            known = 0.5 * (self.weighed / self.corner)[:, 0, 0]
        else:
            known = 0.5 * torch.linalg.solve(self.corner, self.weighed).diagonal(dim1=1, dim2=2).sum(1)
        return known.new_zeros(self.count).index_copy(0, self.blocks, known)

    def remove(self, block: int) -> None:
        row = self.row[block]
        columns = self.index[row][self.real[row]]
        p, r, f = self.panel
        inverse = self.inverse[columns] - p[:, columns].mT @ r
        energy = self.energy[columns] - f[:, columns].mT @ r - r[:, columns].mT @ f
        gain = torch.linalg.solve(inverse[:, columns], inverse)
        half = energy - 0.5 * energy[:, columns] @ gain
        own = [torch.where(self.real, each[:, self.index], 0.0).transpose(0, 1) for each in (inverse, gain, half)]
        change = own[2].mT @ own[1]
        self.corner -= own[0].mT @ own[1]
        self.weighed -= change + change.mT
        self.corner[row] = torch.eye(self.corner.shape[-1], dtype=gain.dtype)
        self.weighed[row] = 0.0
        self.gone[columns] = True
        self.panel = [torch.cat(pair) for pair in zip(self.panel, (inverse, gain, half), strict=True)]
        if len(self.panel[0]) >= PANEL:
            self._catch_up()

    def _catch_up(self) -> None:
        p, r, f = self.panel
        self.inverse.addmm_(p.mT, r, alpha=-1.0)
        self.energy.addmm_(f.mT, r, alpha=-1.0).addmm_(r.mT, f, alpha=-1.0)
        if self.gone.sum() >= len(self.gone) / 8:
            self._drop()
        self.panel = [r.new_empty(0, len(self.gone)) for _ in range(3)]

    def _drop(self) -> None:
        """Forget the columns that went."""
        stay, place = ~self.gone, (~self.gone).cumsum(0) - 1
        self.inverse, self.energy = self.inverse[stay][:, stay], self.energy[stay][:, stay]
        alive = ~(self.real & self.gone[self.index]).any(1)
        self.index, self.real = place[self.index[alive]].clamp_min(0), self.real[alive]
        self.blocks, self.corner, self.weighed = self.blocks[alive], self.corner[alive], self.weighed[alive]
        self.row = {block: row for row, block in enumerate(self.blocks.tolist())}
        self.gone = torch.zeros(int(stay.sum()), dtype=torch.bool)
