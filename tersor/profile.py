"""What was measured on data: H, g, ranges.

For a layer `y = W x + b` and `x~ = (x, 1)`: `gram` is `H = E[x~ x~^T]`, `fisher` is `g_i = E[(dL/dy_i)^2]` with labels
sampled from the model's own prediction, `drift` is `C = E[x_original x~_now^T]` once earlier layers have changed. The
damage of replacing `W` by `V` is `1/2 tr(diag(g) (V - W) H (V - W)^T)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """What is known about one matrix of `groups` blocks, `r` rows (all groups) and `c` columns.

    gram: float64 (groups, c + 1, c + 1), mean per output position, last row and column the constant.
    fisher: float64 (r,), summed over output positions, mean over items.
    drift: float64 (groups, c + 1, c + 1) or None, `E[x~_original x~_now^T]`.
    """

    gram: Tensor
    fisher: Tensor
    drift: Tensor | None = None


@dataclass(frozen=True)
class Range:
    """Values an activation took: extremes, and a histogram of `counts` over `edges` (one more than counts)."""

    low: float
    high: float
    counts: Tensor
    edges: Tensor


@dataclass(frozen=True)
class Profile:
    """Everything measured in one pass: facts by matrix name, ranges by node name."""

    facts: dict[str, Facts] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    items: int = 0
