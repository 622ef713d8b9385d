"""Operators that stand for others are spelled out while a model is captured, so that every matrix in them is a layer.

Padding that is given as a word becomes numbers; a convolution that says by its arguments what it is becomes the operator of
that name; a recurrent cell that is stepped by hand becomes two linear layers and what is made of them. The same is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten
_BY_RANK = {1: (F.conv1d, F.conv_transpose1d), 2: (F.conv2d, F.conv_transpose2d), 3: (F.conv3d, F.conv_transpose3d)}


def _padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: str = "valid",
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """ "same" pads by half of what the kernel reaches over, the odd one of it behind; "valid" does not pad."""
    rank = weight.ndim - 2
    reach = [d * (k - 1) for d, k in zip(_each(dilation, rank), weight.shape[2:], strict=True)]
    before = [r // 2 if padding == "same" else 0 for r in reach]
    behind = [r % 2 if padding == "same" else 0 for r in reach]
    if any(behind):
        x = F.pad(x, [width for odd in reversed(behind) for width in (0, odd)])
    return _BY_RANK[rank][0](x, weight, bias, _each(stride, rank), before, _each(dilation, rank), groups)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    plain, back = _BY_RANK[weight.ndim - 2]
    if transposed:
        return back(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return plain(x, weight, bias, stride, padding, dilation, groups)


def _each(values: Sequence[int], rank: int) -> list[int]:
    return list(values) * rank if len(values) == 1 else list(values)


def _gru(x: Tensor, state: Tensor, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> Tensor:
    reset, update, new = F.linear(x, w, b).chunk(3, -1)
    reset_too, update_too, old = F.linear(state, u, c).chunk(3, -1)
    update = torch.sigmoid(update + update_too)
    proposed = torch.tanh(new + torch.sigmoid(reset + reset_too) * old)
    return (1 - update) * proposed + update * state


def _lstm(
    x: Tensor, states: Sequence[Tensor], w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    state, kept = states
    take, forget, new, give = (F.linear(x, w, b) + F.linear(state, u, c)).chunk(4, -1)
    kept = torch.sigmoid(forget) * kept + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(kept), kept


def _plain(bend: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor, state: Tensor, w: Tensor, u: Tensor, b: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        return bend(F.linear(x, w, b) + F.linear(state, u, c))

    return cell


SPELLED: Mapping[Any, Callable[..., Any]] = {
    aten.conv1d.padding: _padded,
    aten.conv2d.padding: _padded,
    aten.conv3d.padding: _padded,
    aten.convolution.default: _convolution,
    aten.gru_cell.default: _gru,
    aten.lstm_cell.default: _lstm,
    aten.rnn_tanh_cell.default: _plain(torch.tanh),
    aten.rnn_relu_cell.default: _plain(torch.relu),
}
"""What to compute instead, by operator, as `ExportedProgram.run_decompositions` takes it."""
