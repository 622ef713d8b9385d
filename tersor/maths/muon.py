"""Muon: the momentum of a matrix, made orthogonal, so that a step moves every one of its directions as far as any other.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The size of a step is a share of the
matrix' own norm here (as in You et al. 2017, arXiv:1708.03888): what scale was folded from a norm into it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

VECTORS = 5.0
"""The rate of what is no matrix, in rates of matrices."""
_STEPS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of the source: singular values end between 0.7 and 1.2
_SMALL = 2**16  # values of a matrix that a GPU has too little work with


def orthogonal(m: Tensor) -> Tensor:
    """About `U V'` of `m = U S V'`, (..., rows, columns), by Newton and Schulz's iteration: products only."""
    wide = m.mT if m.shape[-2] > m.shape[-1] else m
    x = wide / _norm(wide)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if m.shape[-2] > m.shape[-1] else x


def directions(headings: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Of each matrix of `headings` the `orthogonal` one, with the norm of its fellow of `like`."""
    return [_scaled(orthogonal(heading), p.norm()) for heading, p in zip(headings, like, strict=True)]


def directions_together(headings: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """As `directions`, small matrices of similar shape in one product, zeros around them, which stay zeros. For a GPU, where
    the products of a hundred small layers take less time than their kernels take to be launched."""
    norms = torch._foreach_norm(list(like))
    wide = [heading.mT if heading.shape[0] > heading.shape[1] else heading for heading in headings]
    similar: dict[tuple[int, ...], list[int]] = {}
    for i, each in enumerate(wide):
        small = each.numel() <= _SMALL
        key = tuple(2 ** (side - 1).bit_length() for side in each.shape) if small else (*each.shape, i)
        similar.setdefault(key, []).append(i)
    found: dict[int, Tensor] = {}
    for (rows, columns, *_), which in similar.items():
        stack = torch.stack([pad(wide[i], (0, columns - wide[i].shape[1], 0, rows - wide[i].shape[0])) for i in which])
        turned = _scaled(orthogonal(stack), torch.stack([norms[i] for i in which])[:, None, None])
        found |= {i: each[: wide[i].shape[0], : wide[i].shape[1]] for i, each in zip(which, turned, strict=True)}
    return [found[i].mT if h.shape[0] > h.shape[1] else found[i] for i, h in enumerate(headings)]


class Muon(torch.optim.Optimizer):
    """Moves each matrix of a group with `matrices=True` by `lr` of its Frobenius norm a step, so that one of zeros stays; the
    others take steps of SGD with Nesterov's momentum, at `VECTORS * lr`. Kernels of convolutions are matrices of their first
    axis by all others."""

    def __init__(self, parts: Iterable[dict[str, Any]], lr: float | Tensor, momentum: float = 0.9):
        super().__init__(
            parts, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "matrices": False, "foreach": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss comes back
        """Take one step; a parameter without gradient stays."""
        for part in self.param_groups:
            moved = [p for p in part["params"] if p.grad is not None]
            for p in moved:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            if moved:
                momenta = [self.state[p]["momentum"] for p in moved]
                found = (_turned if part["matrices"] else _pushed)(moved, momenta, part["momentum"])
                if part["weight_decay"]:
                    torch._foreach_add_(found, moved, alpha=part["weight_decay"])
                torch._foreach_mul_(found, part["lr"])
                torch._foreach_sub_(moved, found)


def _turned(moved: list[Tensor], momenta: list[Tensor], momentum: float) -> list[Tensor]:
    """Where matrices go."""
    gradients = _gradients(moved)
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    headings = [each.flatten(1) for each in torch._foreach_lerp(gradients, momenta, momentum)]
    find = directions if moved[0].device.type == "cpu" else directions_together
    return [each.reshape(p.shape) for each, p in zip(find(headings, moved), moved, strict=True)]


def _pushed(moved: list[Tensor], momenta: list[Tensor], momentum: float) -> list[Tensor]:
    """Where all others go."""
    gradients = _gradients(moved)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, gradients)
    found = torch._foreach_mul(momenta, momentum)
    torch._foreach_add_(found, gradients)
    torch._foreach_mul_(found, VECTORS)
    return list(found)


def _gradients(moved: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in moved if p.grad is not None]


def _norm(m: Tensor) -> Tensor:
    return torch.linalg.vector_norm(m, dim=(-2, -1), keepdim=True).clamp_min(1e-20)


def _scaled(m: Tensor, norm: Tensor) -> Tensor:
    return m * (norm / _norm(m))
