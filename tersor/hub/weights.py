"""Integer codes behind the constants of an ONNX file: the one place that knows how a `Weight` stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tersor.forms.affine import Affine
from tersor.hub.values import constant
from tersor.weight import Weight


@dataclass(frozen=True)
class Codes:
    """`real = scale * codes` with int8 codes; `scale` float32, one value or one along `axis`."""

    name: str
    codes: np.ndarray
    scale: np.ndarray
    axis: int

    def dense(self) -> np.ndarray:
        shape = [1] * self.codes.ndim
        shape[self.axis] = self.scale.size
        return self.codes.astype(np.float32) * self.scale.reshape(shape)

    def transposed(self) -> Codes:
        return Codes(self.name, np.ascontiguousarray(self.codes.T), self.scale, self.codes.ndim - 1 - self.axis)


def codes_of(name: str, weight: Weight) -> Codes | None:
    """The symmetric integer codes of `weight`, one scale a channel or one in all; None for every other form."""
    if not isinstance(weight, Affine) or bool(weight.zero.any()) or weight.scale.shape[1] != 1:
        return None
    codes, scale = weight.codes.cpu().numpy(), weight.scale.cpu().numpy().reshape(-1)
    channels = codes.shape[weight.axis]
    if scale.size not in (1, channels) or np.any(scale < 0) or (weight.transposed and weight.groups > 1):
        return None
    # A scale of zero belongs to a dead channel; a grid needs a positive one, and any will do.
    scale = np.where(scale == 0, np.float32(1.0), scale)
    return Codes(name, codes, np.broadcast_to(scale, (channels,)).copy(), weight.axis)


def integer_matrices(graph: ir.Graph, weights: Mapping[str, Weight], kinds: tuple[str, ...]) -> dict[ir.Node, Codes]:
    """The nodes of `kinds` whose constant is exactly one of `weights` (or its transpose), with its codes.

    Found by value, not by name: the exporter renames and transposes some constants.
    """
    known = [codes for name, weight in weights.items() if (codes := codes_of(name, weight)) is not None]
    found: dict[ir.Node, Codes] = {}
    for node in graph:
        array = constant(node.inputs[1]) if node.op_type in kinds else None
        if array is not None:
            name = node.inputs[1].name
            match = _match(array, sorted(known, key=lambda codes: codes.name != name))
            if match is not None:
                found[node] = match
    return found


def same(codes: Codes, array: np.ndarray) -> bool:
    """Whether `array` is what the codes stand for."""
    return codes.codes.shape == array.shape and np.array_equal(codes.dense(), array)


def _match(array: np.ndarray, known: list[Codes]) -> Codes | None:
    for codes in known:
        for candidate in (codes, codes.transposed()) if codes.codes.ndim == 2 else (codes,):
            if same(candidate, array):
                return candidate
    return None
