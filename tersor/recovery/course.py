"""How to train, and how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tersor.loss import Loss
from tersor.losses.kl import KL
from tersor.maths.rates import Rate, cosine

BEST, LAST = "best", "last"


@dataclass(frozen=True)
class Training:
    """How to train. `rate` is the highest learning rate, `usual_rate` where it is None; `begun`: whether the student begins
    with what its teacher knows; `average`: the decay of the moving average of parameters that is what comes out in the end (0:
    the last parameters); `accumulate`: batches a step; `precision` of the arithmetic: "fp32" or "bf16"; `clip`: the largest
    norm of the gradient; `limit`: seconds, where they say how many steps there are, not `epochs`."""

    loss: Loss = KL()  # noqa: RUF009 - immutable
    epochs: float = 2.0
    optimiser: str = "sgd"
    rate: float | None = 0.01
    begun: bool = True
    schedule: Rate = cosine
    warm_up: float = 0.05
    momentum: float = 0.9
    decay: float = 0.0
    clip: float = 1.0
    average: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    limit: float = math.inf
    save_every: float = 120.0  # seconds
    keep: str = BEST  # of the states that were judged, the one that comes out, or the LAST


@dataclass
class History:
    """What happened: the mean loss of each stretch of steps, and (step, judged) at the start and after each epoch, lower being
    better. `returns`: the steps after which it went back to the best state, at half the rate."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    judged: list[tuple[int, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    stopped: bool = False  # early: what was judged was good enough
    last: bool = False  # what came out is the last state, not the best
    returns: list[int] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @staticmethod
    def of(values: Mapping[str, Any]) -> History:
        """What `values` gave."""
        losses, judged = ([(int(step), float(value)) for step, value in values[name]] for name in ("losses", "judged"))
        stopped, last = bool(values["stopped"]), bool(values.get("last", False))
        returns = [int(step) for step in values.get("returns", ())]
        return History(losses, judged, int(values["steps"]), float(values["seconds"]), stopped, last, returns)
