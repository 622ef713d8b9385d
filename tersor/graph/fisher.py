"""How much the outputs mind a change of each row: `g_i = E[(dL/dy_i)^2]`, with labels that the model itself draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor.graph.likelihood import sampled_loss
from tersor.graph.model import Model


def squared_gradients(
    model: Model, flat: Sequence[Tensor], nodes: Collection[str], generator: torch.Generator, temperature: float
) -> dict[str, Tensor]:
    """For each named node, the squared gradient of the sampled loss, in the shape of the node's value.

    The loss is summed over items, which evaluation mode keeps apart, so each item sees its own gradient.
    """
    tracking = _Tracking(model.module, nodes)
    args, kwargs = model.arguments(flat)
    outputs = pytree.tree_leaves(tracking.run(*pytree.tree_leaves((args, kwargs))))
    loss = sampled_loss([o for o in outputs if isinstance(o, Tensor)], flat, generator, temperature)
    names = list(tracking.seen)
    if loss is None or not names:
        return {name: torch.zeros_like(value) for name, value in tracking.seen.items()}
    found = torch.autograd.grad(loss, [tracking.seen[n] for n in names], allow_unused=True)
    return {
        name: torch.zeros_like(tracking.seen[name]) if gradient is None else gradient.square()
        for name, gradient in zip(names, found, strict=True)
    }


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
