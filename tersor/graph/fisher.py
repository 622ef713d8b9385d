"""How much the loss minds each output row: `g_i = E[(dL/dy_i)^2]`, with labels that the model itself draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.graph.model import Model


def squared_gradients(
    model: Model, flat: Sequence[Tensor], nodes: Collection[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """For each named node, the squared gradient of the sampled loss, in the shape of the node's value.

    The loss is summed over items, which evaluation mode keeps apart, so each item sees its own gradient.
    """
    tracking = _Tracking(model.module, nodes)
    args, kwargs = model.arguments(flat)
    outputs = pytree.tree_leaves(tracking.run(*pytree.tree_leaves((args, kwargs))))
    loss = sampled_loss([o for o in outputs if isinstance(o, Tensor)], flat, generator)
    names = list(tracking.seen)
    if loss is None or not names:
        return {name: torch.zeros_like(value) for name, value in tracking.seen.items()}
    found = torch.autograd.grad(loss, [tracking.seen[n] for n in names], allow_unused=True)
    return {
        name: torch.zeros_like(tracking.seen[name]) if gradient is None else gradient.square()
        for name, gradient in zip(names, found, strict=True)
    }


def sampled_loss(outputs: Sequence[Tensor], inputs: Sequence[Tensor], generator: torch.Generator) -> Tensor | None:
    """The negative log-likelihood of labels sampled from the model's own prediction, summed; None without gradients.

    Class scores (rank 2 with several columns; for integer inputs, such as tokens, any rank: last axis) are categorical,
    as logits or as probabilities; everything else is a unit Gaussian around the output.
    """
    tokens = any(not x.is_floating_point() for x in inputs)
    losses = [_loss(out, tokens, generator) for out in outputs if out.is_floating_point() and out.requires_grad]
    return torch.stack(losses).sum() if losses else None


def _loss(out: Tensor, tokens: bool, generator: torch.Generator) -> Tensor:
    if out.shape[-1] > 1 and (out.ndim == 2 or (tokens and out.ndim > 2)):
        logits = out.reshape(-1, out.shape[-1])
        if _probabilities(logits.detach()):
            logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
        labels = torch.multinomial(logits.detach().float().softmax(-1), 1, generator=generator)[:, 0]
        return F.cross_entropy(logits, labels, reduction="sum")
    noise = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    return -(noise * out).sum()  # the gradient of 1/2 |y - out|^2 at y = out + noise


def _probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < 1e-3).all())


class _Tracking(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, nodes: Collection[str]):
        super().__init__(module)
        self._nodes = nodes
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.enable_grad():
            value = super().run_node(n)
            if n.name in self._nodes:
                if not value.requires_grad:
                    value.requires_grad_()
                self.seen[n.name] = value
            return value
