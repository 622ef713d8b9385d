"""A model as it is trained: parameters free, decided weights seen through the set they were chosen from, norms at work.

A decided weight (a form on a grid, with zeros in certain places, ...) has a latent value, a plain parameter; every pass
uses the nearest point of its set, and the gradient goes straight through to the latent value. What is trained therefore
always is what will be stored. Static feeds round activations in every pass. The steps of grids are learned, for weights and
for activations: the gradient for a step is that of the rounding it does (Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.forms.affine import Affine
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.loss import Seen
from tersor.rewrites.fold_norms import fold_norms
from tersor.target import Compressed, Grid
from tersor.weight import Weight

STEP = "step of "
"""Begins the name of a parameter that is the step of a grid."""
_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


class Network:
    """What `compressed` is, to be trained. The compressed model itself is left alone."""

    def __init__(self, compressed: Compressed, moving_norms: bool = True):
        """moving_norms: batch norms use each batch's own statistics and follow them; else they stay as they are."""
        self.model = compressed.model.copy()
        self.kept: dict[str, Weight] = dict(compressed.weights)
        self.feeds = dict(compressed.feeds)
        self._moving = moving_norms
        self.parameters: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.module.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
                self.parameters[name] = parameter
        for name, feed in self.feeds.items():
            if isinstance(feed, Grid):
                self.parameters[f"{STEP}{name}"] = nn.Parameter(torch.tensor(feed.scale))
        for name, weight in self.kept.items():
            if isinstance(weight, Affine):
                self.parameters[f"{STEP}{name}"] = nn.Parameter(weight.scale.clone())

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What passes change: the statistics of norms."""
        return dict(self.model.module.named_buffers())

    def __call__(self, flat: Sequence[Tensor], nodes: Collection[str] = (), training: bool = True) -> Seen:
        """Outputs by name, and the activations of `nodes`, with gradients where torch has them switched on."""
        values = {name: self._value(name, weight) for name, weight in self.kept.items()}
        run = _Run(self.model.module, values, self._rounding(), set(nodes), training and self._moving)
        args, kwargs = self.model.arguments(flat)
        outputs = pytree.tree_leaves(run.run(*pytree.tree_leaves((args, kwargs))))
        return Seen(dict(zip(self.model.outputs, outputs, strict=True)), run.seen)

    @torch.no_grad()
    def compressed(self) -> Compressed:
        """What it has become: norms folded, weights the nearest of their sets, nothing free."""
        model = self.model.copy()
        for name, weight in self.kept.items():
            model.assign(name, self._settled(name, weight).dense())
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)
        model = fold_norms(model)
        weights = {name: self._settled(name, weight, model.tensor(name)) for name, weight in self.kept.items()}
        feeds = {
            name: replace(feed, scale=float(_positive(self.parameters[f"{STEP}{name}"])))
            if isinstance(feed, Grid)
            else feed
            for name, feed in self.feeds.items()
        }
        return Compressed(model, weights, feeds)

    def _value(self, name: str, weight: Weight) -> Tensor:
        latent = self.parameters[name]
        if isinstance(weight, Affine):
            return weight.through(latent, _positive(self.parameters[f"{STEP}{name}"]))
        value = weight.nearest(latent.detach()).dense()
        return latent + (value - latent).detach()

    def _settled(self, name: str, weight: Weight, latent: Tensor | None = None) -> Weight:
        if isinstance(weight, Affine):
            weight = replace(weight, scale=_positive(self.parameters[f"{STEP}{name}"].detach()))
        return weight.nearest(self.parameters[name] if latent is None else latent)

    def _rounding(self) -> dict[str, tuple[Tensor, Grid]]:
        return {n: (_positive(self.parameters[f"{STEP}{n}"]), f) for n, f in self.feeds.items() if isinstance(f, Grid)}


class Teacher:
    """A model that is only asked."""

    def __init__(self, model: Model):
        self.model = model

    @torch.no_grad()
    def __call__(self, flat: Sequence[Tensor], nodes: Collection[str] = ()) -> Seen:
        """Outputs by name, and the activations of `nodes`."""
        run = _Run(self.model.module, {}, {}, set(nodes), False)
        args, kwargs = self.model.arguments(flat)
        outputs = pytree.tree_leaves(run.run(*pytree.tree_leaves((args, kwargs))))
        return Seen(dict(zip(self.model.outputs, outputs, strict=True)), run.seen)


class _Run(fx.Interpreter):
    """One pass, node by node."""

    def __init__(
        self,
        module: fx.GraphModule,
        values: Mapping[str, Tensor],
        rounding: Mapping[str, tuple[Tensor, Grid]],
        nodes: Collection[str],
        moving: bool,
    ):
        super().__init__(module)
        self._values, self._rounding, self._nodes, self._moving = values, rounding, nodes, moving
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = self._norm(n) if self._moving and n.target in _NORMS else super().run_node(n)
        if n.name in self._nodes:
            self.seen[n.name] = value
        rounding = self._rounding.get(n.name)
        return value if rounding is None else _rounded(value, *rounding)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self._values.get(str(target))
        return super().get_attr(target, args, kwargs) if value is None else value

    def _norm(self, n: fx.Node) -> Any:
        x, gamma, beta, mean, var, *rest = self.fetch_args_kwargs_from_env(n)[0]
        whole = n.target is aten.batch_norm.default
        momentum, eps = rest[1:3] if whole else rest[:2]
        found = torch.nn.functional.batch_norm(x, mean, var, gamma, beta, True, momentum, eps)
        return found if whole else (found, None, None)


def _positive(step: Tensor) -> Tensor:
    """A training may carry a step across zero; the largest of float32's smallest numbers stops it."""
    return step.abs().clamp_min(1e-12)


def _rounded(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """`x` on the grid with this step; the step's gradient is made as small as its own size asks for, as its source says."""
    mild = (x[0].numel() * max(1, grid.high - grid.low)) ** -0.5
    step = step * mild + (step - step * mild).detach()
    code = x / step + grid.zero
    code = (code + (code.round() - code).detach()).clamp(grid.low, grid.high)
    return step * (code - grid.zero)
