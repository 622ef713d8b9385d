"""The optimisers of a training, as it calls them."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import nn

from tersor.maths.muon import Muon
from tersor.recovery.network import STEP

OPTIMISERS = {"adamw": 1e-3, "muon": 1e-3, "sgd": 1e-2}
"""Their names, and the highest learning rate of each where none is given and the student begins with what its teacher knows."""
_STEADY = {"muon": 8e-3}  # where the loss is steady
_ANEW = {"muon": 3e-2, "sgd": 1e-1}  # where the student knows nothing


def usual_rate(name: str, steady: bool, begun: bool) -> float:
    """The highest learning rate of the optimiser called `name` where none is given: see `Loss.steady`, `Training.begun`."""
    if not begun:
        return _ANEW.get(name, OPTIMISERS[name])
    return _STEADY.get(name, OPTIMISERS[name]) if steady else OPTIMISERS[name]


def optimiser_of(
    parameters: Mapping[str, nn.Parameter],
    name: str,
    rate: float,
    momentum: float,
    decay: float,
    multiplying: Container[str] = (),
) -> torch.optim.Optimizer:
    """The one called `name`. Matrices decay; biases, scales and the steps of grids do not. multiplying: parameters that inputs
    are multiplied with, which Muon is for; it takes steps of SGD with the others, of which tables of a million rows may be.
    """
    matrix = {n: p.ndim > 1 and not n.startswith(STEP) for n, p in parameters.items()}
    parts = [
        {"params": [p for n, p in parameters.items() if matrix[n] == which], "weight_decay": decay * which}
        for which in (True, False)
    ]
    device = next(iter(parameters.values())).device
    far = device.type != "cpu"  # one kernel instead of dozens, which reads its rate from memory
    lr = torch.tensor(rate, device=device) if far else rate
    if name == "muon":
        groups = [
            {"params": [p for n, p in parameters.items() if (matrix[n], matrix[n] and n in multiplying) == which]}
            | {"weight_decay": decay * which[0], "matrices": which[1]}
            for which in ((True, True), (True, False), (False, False))
        ]
        return Muon(groups, lr, momentum)
    if name == "adamw":
        return torch.optim.AdamW(parts, lr=lr, betas=(momentum, 0.999), fused=far, capturable=far)
    return torch.optim.SGD(parts, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=far)
