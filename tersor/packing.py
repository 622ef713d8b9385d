"""Lossless: the smallest form of the same value."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tersor.forms.affine import Affine
from tersor.forms.bitmask import Bitmask, bitmask
from tersor.forms.dense import Dense
from tersor.forms.nofm import PackedNofM, n_of_m
from tersor.forms.sum import Sum
from tersor.maths.bits import pack, unpack
from tersor.weight import Weight

RUNS = (4, 8, 16)  # columns; the runs in which a fixed number of values is looked for


def smallest(weight: Weight) -> Weight:
    """The smallest known form whose `dense()` is the same, bit for bit; `weight` itself where nothing is smaller."""
    candidates = [weight]
    if isinstance(weight, Sum):
        candidates.append(Sum(smallest(weight.left), smallest(weight.right)))
    if isinstance(weight, Affine):
        candidates.append(_fewer_bits(weight))
    if isinstance(weight, Bitmask | PackedNofM):
        candidates.append(Dense(weight.dense()))
    value = weight.dense()
    candidates.append(bitmask(value, value != 0))
    if value.ndim > 1 and value.numel():
        candidates += [n_of_m(value, m) for m in RUNS]
    # A mask forgets the sign of negative zeros; equality of bits decides.
    return min((c for c in candidates if _same(c.dense(), value)), key=lambda c: c.nbytes)


def _fewer_bits(weight: Affine) -> Affine:
    """The same codes in the fewest bits that hold them."""
    count = weight.codes.numel()
    codes = unpack(weight.packed, weight.bits, count).to(torch.int16) - 2 ** (weight.bits - 1)
    if not count:
        return weight
    low, high = int(codes.min()), int(codes.max())
    bits = next(b for b in range(1, 9) if -(2 ** (b - 1)) <= low and high < 2 ** (b - 1))
    packed = pack((codes + 2 ** (bits - 1)).to(torch.uint8), bits)
    return replace(weight, packed=packed, bits=bits, low=max(weight.low, -(2 ** (bits - 1))))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.view(torch.int32) == b.view(torch.int32)).all())
