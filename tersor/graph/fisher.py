"""How much the outputs mind a change of each row: `g_i = E[(dL/dy_i)^2]`, with labels that the model itself draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.errors import ModelError
from tersor.graph import lines
from tersor.graph.checked import is_finite
from tersor.graph.likelihood import sampled_loss
from tersor.graph.model import Model, Visitor
from tersor.graph.watched import OUTPUTS, Watch


def gradients(
    model: Model,
    flat: Sequence[Tensor],
    nodes: Collection[str],
    generator: torch.Generator,
    temperature: float,
    visit: Visitor,
    seen: Callable[[str, Tensor], None],
    watch: Watch = OUTPUTS,
) -> None:
    """Show `seen` the gradient of the sampled loss at each named node, in the shape of the node's value, and keep none.

    The loss is summed over items, which evaluation mode keeps apart, so each item sees its own gradient. `visit` sees every
    value on the way, as in `Model.interpret`, and leaves it as it is. Nodes that the loss does not depend on are not shown.
    watch: what the loss is of, `watched(model)`.
    """
    tracking = _Tracking(model.module, nodes, visit, seen, watch)
    args, kwargs = model.arguments(flat)
    outputs = tracking.judged(pytree.tree_leaves((args, kwargs)))
    loss = sampled_loss([o for o in outputs if isinstance(o, Tensor)], flat, generator, temperature)
    if loss is not None and tracking.roots:
        _backward(model, loss, tracking.roots)


def squared_weight_gradients(
    model: Model,
    flat: Sequence[Tensor],
    names: Collection[str],
    generator: torch.Generator,
    temperature: float,
    watch: Watch = OUTPUTS,
) -> dict[str, Tensor]:
    """For each named parameter, the sum over items of the squared gradient of the item's sampled loss; float64.

    watch: what the loss is of, `watched(model)`. Cost: a pass and its backward for every item alone, since weights see the
    sum over a batch.
    """
    shared = _deepcopied(model, names)
    sums = {name: torch.zeros(model.tensor(name).shape, dtype=torch.float64) for name in names}
    for item in range(len(flat[0])):
        deadline.check()
        one = tuple(x[item : item + 1] for x in flat)
        args, kwargs = shared.arguments(one)
        with torch.enable_grad():
            outputs = _Judging(shared.module, watch).judged(pytree.tree_leaves((args, kwargs)))
            loss = sampled_loss([o for o in outputs if isinstance(o, Tensor)], one, generator, temperature)
        if loss is None:
            continue
        found = _backward(shared, loss, [shared.tensor(name) for name in names])
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None and is_finite(gradient):
                sums[name] += gradient.double().square()
    return sums


def _backward(model: Model, loss: Tensor, roots: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradients of `loss`. Raises `ModelError` where an operator has none, such as one of the user's own."""
    try:
        return torch.autograd.grad(loss, roots, allow_unused=True)
    except RuntimeError as cause:
        told = " ".join(str(cause).split())
        node = next((n for n in model.graph.nodes if n.op == "call_function" and str(n.target) in told), None)
        line = lines.of_node(node) if node is not None else ""
        raise ModelError(
            f"Tersor judges layers by gradients, and the model has none{f' at {line}' if line else ''}: {told[:300]} "
            "Give the operator a derivative (torch.library.register_autograd), or write it in torch operations."
        ) from cause


def _deepcopied(model: Model, names: Collection[str]) -> Model:
    """A copy whose parameters `names` ask for gradients."""
    model = model.copy()
    for name in names:
        model.tensor(name).requires_grad_(True)
    return model


class _Judging(fx.Interpreter):
    """Runs with gradients and gives what is judged."""

    def __init__(self, module: fx.GraphModule, watch: Watch):
        super().__init__(module)
        self._watch = watch
        self._found = dict.fromkeys((place.node for place in watch.places or ()), torch.empty(0))

    def judged(self, leaves: Sequence[Any]) -> list[Any]:
        outputs = pytree.tree_leaves(self.run(*leaves))
        places = self._watch.places
        return outputs if places is None else [place.of(self._found[place.node]) for place in places]

    def run_node(self, n: fx.Node) -> Any:
        value = self.env[n.args[0]] if n.name in self._watch.through else super().run_node(n)
        if n.name in self._found:
            self._found[n.name] = value
        return value


class _Tracking(_Judging):
    """Runs with gradients behind the first of `nodes`; `roots` are those among them that depend on no other."""

    def __init__(
        self,
        module: fx.GraphModule,
        nodes: Collection[str],
        visit: Visitor,
        seen: Callable[[str, Tensor], None],
        watch: Watch,
    ):
        super().__init__(module, watch)
        self.extra_traceback = False  # an error of a visitor is a sentence as it is
        self._nodes, self._visit, self._seen = nodes, visit, seen
        self.roots: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        with torch.enable_grad():
            value = super().run_node(n)
            if _fades(value) and n.name not in self._watch.through:
                value = self._guarded(n)
            if n.name in self._nodes:
                if not value.requires_grad:
                    self.roots.append(value.requires_grad_())
                value.register_hook(lambda gradient: self._seen(n.name, gradient))
        with torch.no_grad():
            self._visit(n, value)
        return value

    def _guarded(self, n: fx.Node) -> Any:
        """The value again, so that where it is not finite it hands on no gradient: what takes it away has none for it, but
        zero times infinity is NaN."""
        args, kwargs = pytree.tree_map(_gated, self.fetch_args_kwargs_from_env(n))
        value = getattr(self, n.op)(n.target, args, kwargs)
        if n.name in self._found:
            self._found[n.name] = value
        return value


def _fades(value: Any) -> bool:
    """Whether some of a value is not finite, and gradients go through it."""
    return isinstance(value, Tensor) and value.requires_grad and not is_finite(value)


def _gated(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    alias = value.view_as(value)
    alias.register_hook(lambda gradient: torch.where(gradient.isfinite(), gradient, 0.0))
    return alias
