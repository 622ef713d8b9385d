"""Small unsigned integers, packed without gaps: the first value in the lowest bits of the first byte; the bytes of any."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_array(values: Tensor) -> np.ndarray:
    """`values` as numpy has them; bfloat16, which it has not, as float32."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def raw(values: Tensor) -> Tensor:
    """uint8 (bytes,): what values of any shape, type and strides hold, row by row; shares memory with them where it can."""
    flat = values.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    # torch takes a single value for contiguous whatever its stride, and then refuses to see bytes in it
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)


def pack(values: Tensor, bits: int) -> Tensor:
    """uint8 (ceil(n * bits / 8),) for `values`, integers in [0, 2**bits) of any shape with n elements."""
    flat = values.reshape(-1).to(torch.uint8)
    if bits == 8:
        return flat.clone()
    planes = torch.arange(bits, dtype=torch.uint8, device=flat.device)
    stream = ((flat[:, None] >> planes) & 1).reshape(-1)
    padded = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).reshape(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 (count,): what `pack` was given."""
    if bits == 8:
        return packed[:count].clone()
    planes = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = ((packed[:, None] >> planes) & 1).reshape(-1)[: count * bits]
    return (stream.reshape(-1, bits) << planes[:bits]).sum(1, dtype=torch.uint8)
