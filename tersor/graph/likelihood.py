"""What a network's outputs mean: class scores are categorical, everything else is a unit Gaussian around the output.

Class scores are float outputs of rank 2 with several columns and those of each token of an integer input (last axis); they may
be logits or probabilities. Of complex numbers both parts are real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sampled_loss(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], generator: torch.Generator, temperature: float = 1.0
) -> Tensor | None:
    """A scalar whose gradient at the outputs is a random draw of mean zero and covariance the Fisher matrix.

    For class scores that is `diag(p) - p p^T` of the prediction softened by `temperature`, the curvature of
    temperature^2 times the softened KL divergence; drawn as a Gaussian, which has the same covariance as the gradient
    for a sampled label and less noise. None where no output has gradients.
    """
    losses = [
        _sampled(out, inputs, generator, temperature)
        for out in outputs
        if (out.is_floating_point() or out.is_complex()) and out.requires_grad
    ]
    return torch.stack(losses).sum() if losses else None


def divergence(
    original: Sequence[Tensor], current: Sequence[Tensor], inputs: Sequence[Tensor], temperature: float = 1.0
) -> float:
    """KL(original | current) in nats, summed over outputs and items; class scores softened by `temperature`, its square
    multiplied back: what `sampled_loss` has the curvature of.
    """
    pairs = zip(original, current, strict=True)
    return sum(_divergence(a, b, inputs, temperature) for a, b in pairs if a.is_floating_point() or a.is_complex())


def categorical(out: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether an output is class scores, or probabilities of classes."""
    tokens = any(_numbers(x) and x.shape == out.shape[:-1] for x in inputs)
    return out.is_floating_point() and out.ndim > 1 and out.shape[-1] > 1 and (out.ndim == 2 or tokens)


def _numbers(x: Tensor) -> bool:
    """Whether an input is whole numbers such as tokens; a mask is none, nor is a number an item, such as a step of noise."""
    return x.ndim > 1 and not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def normalised(rows: Tensor) -> bool:
    """Whether class scores (items, classes) are probabilities."""
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < 1e-3).all())


def _sampled(out: Tensor, inputs: Sequence[Tensor], generator: torch.Generator, temperature: float) -> Tensor:
    if not categorical(out, inputs):
        out = torch.view_as_real(out) if out.is_complex() else out
        return (torch.randn(out.shape, generator=generator, dtype=out.dtype) * out).sum()
    logits = _logits(out)
    p = (logits.detach() / temperature).softmax(-1)
    half = p.sqrt() * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return ((half - p * half.sum(-1, keepdim=True)) * logits).sum()


def _divergence(a: Tensor, b: Tensor, inputs: Sequence[Tensor], temperature: float) -> float:
    if categorical(a, inputs):
        p, q = ((_logits(each).double() / temperature).log_softmax(-1) for each in (a, b))
        return temperature**2 * float((p.exp() * (p - q)).sum())
    a, b = (torch.view_as_real(each) if each.is_complex() else each for each in (a, b))
    return 0.5 * float((a.double() - b.double()).square().sum())


def _logits(out: Tensor) -> Tensor:
    rows = out.reshape(-1, out.shape[-1])
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if normalised(rows.detach()) else rows
