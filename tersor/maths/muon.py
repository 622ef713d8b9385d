"""Muon: the momentum of a matrix, made orthogonal, so that a step moves every one of its directions as far as any other.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The size of a step is a share of the
matrix' own norm here (as in You et al. 2017, arXiv:1708.03888): what scale was folded from a norm into it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

VECTORS = 5.0
"""The rate of what is no matrix, in rates of matrices."""
_STEPS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of the source: singular values end between 0.7 and 1.2


def orthogonal(m: Tensor) -> Tensor:
    """About `U V'` of `m = U S V'`, (rows, columns), by Newton and Schulz's iteration: products only."""
    wide = m.T if len(m) > m.shape[1] else m
    x = wide / wide.norm().clamp_min(1e-20)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(m) > m.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Moves each matrix of a group with `matrices=True` by `lr` of its Frobenius norm a step, so that one of zeros stays; the
    others take steps of SGD with Nesterov's momentum, at `VECTORS * lr`. Kernels of convolutions are matrices of their first
    axis by all others."""

    def __init__(self, parts: Iterable[dict[str, Any]], lr: float | Tensor, momentum: float = 0.9):
        super().__init__(parts, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss comes back
        """Take one step; a parameter without gradient stays."""
        for part in self.param_groups:
            for p in part["params"]:
                if p.grad is None:
                    continue
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                p.sub_(part["lr"] * _direction(p, self.state[p]["momentum"], part))


def _direction(p: Tensor, momentum: Tensor, part: Mapping[str, Any]) -> Tensor:
    assert p.grad is not None
    if not part["matrices"]:
        momentum.mul_(part["momentum"]).add_(p.grad)
        return VECTORS * (p.grad + part["momentum"] * momentum)
    momentum.lerp_(p.grad, 1 - part["momentum"])
    heading = p.grad.lerp(momentum, part["momentum"])
    found = orthogonal(heading.flatten(1)).view(p.shape)
    return found * (p.norm() / found.norm().clamp_min(1e-20)) + part["weight_decay"] * p
