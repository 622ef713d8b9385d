"""Integer weights as compressed-tensors stores them ("pack-quantized", "int-quantized"), written without that library.

For `X.weight` (r, c) of b bits: `X.weight_packed`, int32 (r, ceil(c b / 32)), codes + 2^(b - 1) without gaps, the first
in the lowest bits; `X.weight_scale` (r, c / run) in the model's type; `X.weight_shape`, int64 [r, c]. The value is
scale * code. 2, 4 and 8 bits are the same in every version of the library; 3 bits need its version 0.18 or later, which
packs across words as is done here. Where inputs have grids, too, codes are not packed ("int-quantized"): `X.weight`, int8
(r, c), and the scale. Source: compressed-tensors 0.20, compressors/pack_quantized and naive_quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.language.folder import Spec
from tersor.maths.bits import pack, raw, unpack
from tersor.maths.grid import Integers, PerChannel, PerGroup

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored: `bits` a code, and a scale for each `run` consecutive columns, 0 for each row. `reads`: bits
    of what it reads, each position on a grid of its own while it runs; 0 where that stays float."""

    bits: int
    run: int
    reads: int = 0

    @property
    def kind(self) -> Integers:
        """The grids that it may choose from."""
        return Integers(self.bits, True, PerGroup(self.run) if self.run else PerChannel())

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def wide(self, scale: Tensor, codes: Tensor) -> Tensor:
        """The scale (r, runs) of each of the `codes` (r, c)."""
        return scale.repeat_interleave(self.run or codes.shape[1], 1)

    @property
    def packs(self) -> bool:
        """Whether codes lie in words without gaps."""
        return self.reads == 0


@dataclass(frozen=True)
class Chosen:
    """A quantised matrix: int8 `codes` (r, c), `scale` (r, runs) in the stored type, and its new bias, where it has one; `aim`,
    float32 (r, c): what it should have been, where somebody still wants to know."""

    codes: Tensor
    scale: Tensor
    scheme: Scheme
    bias: Tensor | None
    aim: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """float32 (r, c): what a reader of the file computes with, rounded to the stored type as there."""
        return (self.codes.to(self.scale.dtype) * self.scheme.wide(self.scale, self.codes)).float()

    @property
    def by_row(self) -> list[Tensor]:
        """What is stored of it for each row."""
        return [self.scale] if self.bias is None else [self.scale, self.bias]

    def divided(self, scale: Tensor) -> Chosen:
        """With outputs divided by `scale` (r,), powers of two."""
        bias = None if self.bias is None else (self.bias.float() / scale).to(self.bias.dtype)
        aim = None if self.aim is None else self.aim / scale[:, None]
        return replace(self, scale=(self.scale.float() / scale[:, None]).to(self.scale.dtype), bias=bias, aim=aim)


def packed(codes: Tensor, bits: int) -> Tensor:
    """int32 (rows, ceil(c * bits / 32)) of int8 `codes` (rows, c) in [-2^(bits - 1), 2^(bits - 1))."""
    rows, columns = codes.shape
    whole = F.pad(codes.to(torch.int16) + 2 ** (bits - 1), (0, -columns % 32)).to(torch.uint8)
    return pack(whole, bits).view(torch.int32).reshape(rows, -1)[:, : words(columns, bits)].contiguous()


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """int8 (rows, columns): what `packed` was given."""
    whole = F.pad(words, (0, -words.shape[1] % bits))
    codes = unpack(raw(whole), bits, whole.numel() * 32 // bits)
    return (codes.reshape(len(words), -1)[:, :columns].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def words(columns: int, bits: int) -> int:
    """int32 words of a row."""
    return -(-columns * bits // 32)


def run_of(columns: int, groups: int) -> int:
    """Columns that share a scale: `groups`, or the next number above that divides `columns`; 0 for the whole row.

    Readers of the format want runs of one length in a row. Going up never takes more bytes than were asked for.
    """
    run = next((n for n in range(max(1, groups), columns) if columns % n == 0), columns)
    return 0 if groups == 0 or run == columns else run


def specs(name: str, weight: Spec, scheme: Scheme) -> dict[str, Spec]:
    """The tensors that stand for `name`.weight."""
    rows, columns = weight.shape
    scale = {f"{name}.weight_scale": Spec(weight.dtype, (rows, columns // scheme.run if scheme.run else 1))}
    if not scheme.packs:
        return {f"{name}.weight": Spec("I8", (rows, columns)), **scale}
    return {
        f"{name}.weight_packed": Spec("I32", (rows, words(columns, scheme.bits))),
        **scale,
        f"{name}.weight_shape": Spec("I64", (2,)),
    }


def tensors(name: str, codes: Tensor, scale: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """Their values, for int8 `codes` (rows, c) and a `scale` (rows, runs) in the type in which it is stored."""
    if not scheme.packs:
        return {f"{name}.weight": codes, f"{name}.weight_scale": scale}
    return {
        f"{name}.weight_packed": packed(codes, scheme.bits),
        f"{name}.weight_scale": scale,
        f"{name}.weight_shape": torch.tensor(codes.shape),
    }


def settings(schemes: Mapping[str, Scheme], linears: Iterable[str], block: str) -> dict[str, Any]:
    """The `quantization_config` for config.json.

    schemes: by name of the matrix. linears: the names of all linear layers of the model; those without a scheme are listed
    as ignored. block: the name of the list of blocks: what follows its index tells matrices apart, where there are several
    schemes.
    """
    kinds: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        kinds.setdefault(scheme, []).append(name)
    groups = {}
    for number, (scheme, names) in enumerate(kinds.items()):
        targets = ["Linear"] if len(kinds) == 1 else _patterns(names, block)
        groups[f"group_{number}"] = {"targets": targets, "weights": _weights(scheme), **_inputs(scheme)}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if any(scheme.packs for scheme in kinds) else "int-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in linears if name not in schemes],
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    grouped = {"strategy": "group", "group_size": scheme.run} if scheme.run else {"strategy": "channel"}
    return {"num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False, **grouped}


def _inputs(scheme: Scheme) -> dict[str, Any]:
    if not scheme.reads:
        return {}
    args = {"num_bits": scheme.reads, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    return {"input_activations": args}


def _patterns(names: Sequence[str], block: str) -> list[str]:
    start = re.escape(block) + r"\."
    ends = dict.fromkeys(re.sub(rf"^{start}\d+\.", "", name) for name in names)
    return [rf"re:{start}\d+\.{re.escape(end)}$" for end in ends]
