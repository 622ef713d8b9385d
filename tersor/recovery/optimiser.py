"""What moves the parameters, as torch has it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from tersor.recovery.network import STEP


def optimiser(
    parameters: Mapping[str, nn.Parameter], called: str, rate: float, momentum: float, decay: float
) -> torch.optim.Optimizer:
    """Matrices decay; biases, scales and the steps of grids do not."""
    decaying = {name: p.ndim > 1 and not name.startswith(STEP) for name, p in parameters.items()}
    parts = [
        {"params": [p for name, p in parameters.items() if decaying[name] == which], "weight_decay": decay * which}
        for which in (True, False)
    ]
    device = next(iter(parameters.values())).device
    far = device.type != "cpu"  # one kernel instead of dozens, which reads its rate from memory
    at = torch.tensor(rate, device=device) if far else rate
    if called == "adamw":
        return torch.optim.AdamW(parts, lr=at, betas=(momentum, 0.999), fused=far, capturable=far)
    return torch.optim.SGD(parts, lr=at, momentum=momentum, nesterov=momentum > 0, fused=far)
