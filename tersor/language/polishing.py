"""Choose the codes of a block again, all of them together, by what the block gives: SignRound and AdaRound.

A fit of one layer after the other sees each layer's outputs; what leaves the block also depends on how their errors meet. Here
codes may move, and scales by a little: what is computed with is `round(codes + v)`, gradients pass the rounding straight
through, and the squared error of the block's output towards the original's falls by Adam on random windows. v starts where
the target lies beside its code, so that codes move first that were nearly chosen otherwise. What is kept is the best of a
few points on the way, by pieces of text that nothing is fitted to; nothing changes where that is the start. Cost: a forward
and a backward pass of the block on TOGETHER positions a step. Sources: Cheng et al. 2023
(arXiv:2309.05516), Nagel et al. 2020 (arXiv:2004.10568).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tersor.language.pack import Chosen

TOGETHER = 512  # positions a step
TRAVEL = 4.0  # codes that v can go in all, over the codes of a grid: fewer codes lie further apart
OF_SCALES = 0.1  # of that, for their logarithms
POINTS = 4  # on the way, that are looked at
NEARLY = 0.45  # of a step: no code moves before it is asked to

Run = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""The block's output with other parameters, by their names in the block, on hidden states (windows, positions, width)."""


@dataclass(frozen=True)
class Goal:
    """Hidden states that the block reads now, and what it should give (windows, positions, width)."""

    hidden: Tensor
    wanted: Tensor


def polished(
    run: Run,
    chosen: Mapping[str, Chosen],
    fit: Sequence[Goal],
    check: Sequence[Goal],
    steps: int,
    seed: int = 0,
) -> dict[str, Chosen]:
    """Better codes and scales for the linear layers `chosen`, by their names in the block."""
    layers = {name: _Layer(found) for name, found in chosen.items()}
    rate = 2 * TRAVEL / 2 ** min(found.scheme.bits for found in chosen.values()) / steps  # which falls to nothing
    adam = torch.optim.Adam(
        [
            {"params": [layer.moves for layer in layers.values()], "lr": rate},
            {"params": [layer.stretch for layer in layers.values()], "lr": rate * OF_SCALES},
        ]
    )
    fading = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
    draw = torch.Generator().manual_seed(seed)
    best, least = dict(chosen), _error(run, chosen, check)
    for step in range(1, steps + 1):
        goal = _some(fit[int(torch.randint(len(fit), (1,), generator=draw))], draw)
        with torch.enable_grad():
            gave = run({f"{name}.weight": layer.value() for name, layer in layers.items()}, goal.hidden)
            error = (gave - goal.wanted).square().mean()
            adam.zero_grad()
            error.backward()
        adam.step()
        fading.step()
        if step % max(1, steps // POINTS) == 0:
            now = {name: layer.chosen() for name, layer in layers.items()}
            error_now = _error(run, now, check)
            if error_now < least:
                best, least = now, error_now
    return best


class _Layer:
    """What moves in one layer: `moves` (r, c) from each code, and `stretch` (r, runs), the logarithms of what scales take."""

    def __init__(self, found: Chosen):
        self._found = found
        aim = found.value if found.aim is None else found.aim
        lies = aim / found.scheme.wide(found.scale.float(), found.codes) - found.codes
        self.moves = lies.clamp(-NEARLY, NEARLY).nan_to_num().requires_grad_()
        self.stretch = torch.zeros(found.scale.shape).requires_grad_()

    def value(self) -> Tensor:
        scale = self._found.scale.float() * self.stretch.exp()
        return self._found.scheme.wide(scale, self.moves) * _Round.apply(
            self._found.codes + self.moves, *self._found.scheme.ends
        )

    def chosen(self) -> Chosen:
        scale = (self._found.scale.float() * self.stretch.detach().exp()).to(self._found.scale.dtype)
        codes = (self._found.codes + self.moves.detach()).round().clamp(*self._found.scheme.ends)
        return replace(self._found, codes=codes.to(torch.int8), scale=scale)


class _Round(torch.autograd.Function):
    """To the nearest code; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: int, high: int) -> Tensor:
        return x.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


@torch.no_grad()
def _error(run: Run, chosen: Mapping[str, Chosen], goals: Sequence[Goal]) -> float:
    values = {f"{name}.weight": found.value for name, found in chosen.items()}
    return sum(float((run(values, g.hidden) - g.wanted).square().sum()) for g in goals)


def _some(goal: Goal, draw: torch.Generator) -> Goal:
    """Some of its windows."""
    count = max(1, TOGETHER // goal.hidden.shape[1])
    rows = torch.randperm(len(goal.hidden), generator=draw)[:count]
    return Goal(goal.hidden[rows], goal.wanted[rows])
