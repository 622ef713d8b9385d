"""An order of columns in which n of every m lose least.

In n:m sparsity each run of m neighbouring columns keeps n in every row. Which columns are neighbours is free where the
producer can be permuted alike. Source: Pool and Yu 2021, "Channel permutations for N:M sparsity" (NeurIPS), whose search by
exchanges between two runs this is, with every split of the two runs tried where they are few.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import torch
from torch import Tensor

SPLITS = 40  # of two runs into two; where there are more, exchanges of one column each are tried


def best_order(scores: Tensor, n: int, m: int, sweeps: int = 10) -> Tensor:
    """Permutation (columns,) under which runs of `m` columns of `scores` (rows, columns) keep most when each row keeps its
    `n` largest of every run. Never worse than the order as it is.

    Runs are exchanged in pairs until nothing improves, at most `sweeps` times around. A last, shorter run stays as it is.
    Cost a sweep: (columns / m)^2 / 2 pairs, each up to `SPLITS` sorts of 2 m values a row.
    """
    order = torch.arange(scores.shape[1])
    runs = scores.shape[1] // m
    splits = _splits(m)
    for _ in range(sweeps):
        improved = False
        for a, b in combinations(range(runs), 2):
            improved |= _exchange(order, scores, a, b, splits, n, m)
        if not improved:
            break
    return order


def kept(scores: Tensor, n: int) -> Tensor:
    """(...): what the `n` largest of the last axis of (..., rows, m) sum to, over rows."""
    return scores.topk(n, -1).values.sum((-1, -2))


def _exchange(order: Tensor, scores: Tensor, a: int, b: int, splits: Tensor, n: int, m: int) -> bool:
    """Split the columns of two runs in the best way, in place; whether that was an improvement."""
    here = torch.cat([order[a * m : (a + 1) * m], order[b * m : (b + 1) * m]])
    parts = scores[:, here][:, splits].permute(1, 2, 0, 3)  # (splits, 2, rows, m)
    values = kept(parts, n).sum(1)
    best = int(values.argmax())
    if values[best] <= values[0] * (1 + 1e-9):
        return False
    order[a * m : (a + 1) * m], order[b * m : (b + 1) * m] = here[splits[best, 0]], here[splits[best, 1]]
    return True


def _splits(m: int) -> Tensor:
    """(splits, 2, m): ways to put 2 m columns into two runs, the present one first."""
    every = list(range(2 * m))
    ways = [[every[:m], every[m:]]]
    if comb(2 * m, m) <= 2 * SPLITS:
        for first in combinations(every[1:], m - 1):
            ways.append([[0, *first], [i for i in every[1:] if i not in first]])
    else:
        for i in range(m):
            for j in range(m, 2 * m):
                swapped = [j if k == i else i if k == j else k for k in every]
                ways.append([swapped[:m], swapped[m:]])
    return torch.tensor(ways)
