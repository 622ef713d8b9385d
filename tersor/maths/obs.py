"""Structured optimal brain surgeon: remove blocks of columns, move the rest.

For `y = W x~` the damage of `V` is `1/2 tr(diag(g) (V - W) H (V - W)^T)`. Removing the columns `S` and moving the
others to their best values costs exactly `1/2 sum_i g_i W_iS (H^-1_SS)^-1 W_iS^T`, with the updates

    W    -= W_:S (H^-1_SS)^-1 H^-1_S:
    H^-1 -= H^-1_:S (H^-1_SS)^-1 H^-1_S:

so one nested greedy sweep gives the order of removal and the whole damage-against-width curve, and what it keeps is the
exact least-squares fit. Source: Hassibi and Stork 1992 (OBS); Kurtic et al. 2022, "The Optimal BERT Surgeon" (blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor import deadline


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
    """`W` and `H^-1` of one reader while its blocks go. Blocks of unequal size are padded, and the padding masked."""

    def __init__(self, reader: Reader):
        self.w = reader.w.clone()
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.gram))
        self.fisher = reader.fisher
        widest = max((len(block) for block in reader.blocks), default=0)
        self.index = torch.tensor([[*block, *[0] * (widest - len(block))] for block in reader.blocks])
        self.index = self.index.reshape(len(reader.blocks), widest).long()
        sizes = torch.tensor([len(block) for block in reader.blocks])
        self.real = torch.arange(widest) < sizes[:, None]
        self.filler = torch.diag_embed((~self.real).to(self.w.dtype))

    def scores(self) -> Tensor:
        """(blocks,): the damage of removing each block next."""
        columns = torch.where(self.real, self.w[:, self.index], 0.0)  # (r, blocks, size)
        weighed = torch.einsum("rbk,rbl,r->bkl", columns, columns, self.fisher)
        corner = self.inverse[self.index[:, :, None], self.index[:, None, :]]
        corner = torch.where(self.real[:, :, None] & self.real[:, None, :], corner, 0.0) + self.filler
        return 0.5 * torch.linalg.solve(corner, weighed).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, block: int) -> None:
        columns = self.index[block][self.real[block]]
        rows = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])
        self.w -= self.w[:, columns] @ rows
        self.inverse -= self.inverse[:, columns] @ rows
        self.w[:, columns] = 0.0
        self.inverse[columns, :] = 0.0
        self.inverse[:, columns] = 0.0
        self.inverse[columns, columns] = 1.0  # keeps the removed corner invertible; its weights are zero
