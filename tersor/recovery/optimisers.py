"""The optimisers of a training, as it calls them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tersor.maths.muon import Muon
from tersor.recovery.network import STEP

OPTIMISERS = {"adamw": 1e-3, "muon": 1e-3, "sgd": 1e-2}
"""Their names, and the highest learning rate of each where none is given."""


def optimiser_of(
    parameters: Mapping[str, nn.Parameter], name: str, rate: float, momentum: float, decay: float
) -> torch.optim.Optimizer:
    """The one called `name`. Matrices decay; biases, scales and the steps of grids do not."""
    matrix = {n: p.ndim > 1 and not n.startswith(STEP) for n, p in parameters.items()}
    parts = [
        {"params": [p for n, p in parameters.items() if matrix[n] == which], "weight_decay": decay * which}
        for which in (True, False)
    ]
    device = next(iter(parameters.values())).device
    far = device.type != "cpu"  # one kernel instead of dozens, which reads its rate from memory
    lr = torch.tensor(rate, device=device) if far else rate
    if name == "muon":
        return Muon([parts[0] | {"matrices": True}, parts[1]], lr, momentum)
    if name == "adamw":
        return torch.optim.AdamW(parts, lr=lr, betas=(momentum, 0.999), fused=far, capturable=far)
    return torch.optim.SGD(parts, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=far)
