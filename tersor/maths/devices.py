"""Where tensors are."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(t: Tensor, device: torch.device) -> Tensor:
    """`t` on the device; what the device was given to do before is not waited for."""
    return t if device == t.device else t.pin_memory().to(device, non_blocking=True)
