"""Grids for the keys and values that attention keeps: one scale for the keys of a layer, one for its values.

Stored as compressed-tensors and inference servers read them: `X.k_scale` and `X.v_scale` (1,), X the attention module.
Integers of 8 bits take the scale of least squared error on what calibration gave, floats (e4m3) one that reaches the largest.
Source: compressed-tensors 0.20, modeling/kvcache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InputError, ModelError
from tersor.maths.grid import Integers, PerTensor, search
from tersor.maths.ranges import passing

KINDS = ("8", "fp8")
SOME = 1 << 18  # values of a piece of text that the search for a scale sees
_E4M3 = torch.finfo(torch.float8_e4m3fn).max
_PROJECTIONS = ("k_proj", "v_proj", "qkv_proj")  # by which readers of the format know attention


@dataclass
class Grids:
    """Of the cache of one attention module, of a kind in `KINDS`: observes at first, rounds once `settle`d.

    scales: (1,) of the keys and of the values, once settled.
    """

    kind: str
    scales: tuple[Tensor, ...] = ()
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def settle(self, dtype: torch.dtype) -> None:
        """Choose scales, as `dtype` holds them, for what was seen so far."""
        self.scales = tuple(self._scale(torch.cat(some)).to(dtype) for some in zip(*self._seen, strict=True))
        self._seen = []

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What attention reads back; stands for a cache of transformers."""
        if self.scales:
            return self._round(keys, self.scales[0].float()), self._round(values, self.scales[1].float())
        self._seen.append((_some(keys), _some(values)))
        return keys, values

    def _scale(self, seen: Tensor) -> Tensor:
        if self.kind == "fp8":
            return (seen.abs().amax() / _E4M3).clamp_min(torch.finfo(torch.float16).tiny).reshape(1)
        return search(seen[None], torch.ones(1), Integers(8, True, PerTensor())).scale.float().reshape(1)

    def _round(self, x: Tensor, scale: Tensor) -> Tensor:
        if self.kind == "fp8":
            return passing((x / scale).clamp(-_E4M3, _E4M3).to(torch.float8_e4m3fn).to(x.dtype) * scale, x)
        return passing((x / scale).round().clamp(-128, 127) * scale, x)


def settings(kind: str) -> dict[str, Any]:
    """The `kv_cache_scheme` for config.json."""
    number = "float" if kind == "fp8" else "int"
    return {"num_bits": 8, "type": number, "strategy": "tensor", "symmetric": True, "dynamic": False}


def checked(wish: Any) -> str | None:
    """The kind that was asked for. Raises `InputError` for one there is not."""
    word = str(wish).strip()
    if word != "none" and word not in KINDS:
        raise InputError(f"kv_cache is {wish!r}; write {' or '.join(KINDS)}, or none.")
    return None if word == "none" else word


def caches(block: nn.Module) -> list[str]:
    """The attention modules of `block` whose cache may have grids. Raises `ModelError` where there is none."""
    found = [name for name, module in block.named_modules() if _takes(module) is not None]
    if not found:
        raise ModelError(
            f"Attention of {type(block).__name__} is not what readers of cache scales know (k_proj, v_proj or qkv_proj, and "
            "a cache in its call); leave the KV cache at none."
        )
    return found


def put(attention: nn.Module, grids: Grids) -> None:
    """From now on the cache of `attention` is on `grids`."""
    word = _takes(attention)
    assert word is not None  # `caches` named it
    attention.register_forward_pre_hook(_giving(word, grids), with_kwargs=True)


def _giving(word: str, grids: Grids) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, word: grids}

    return hook


def _takes(module: nn.Module) -> str | None:
    """What the call of an attention module names its cache; None where it is none, or takes none."""
    if "attention" not in type(module).__name__.lower() or not any(hasattr(module, p) for p in _PROJECTIONS):
        return None
    known = inspect.signature(module.forward).parameters
    return next((word for word in ("past_key_values", "cache") if word in known), None)


def _some(t: Tensor) -> Tensor:
    """The largest values that were met, and others at regular steps."""
    flat = t.detach().float().flatten()
    return torch.cat([flat[:: -(-len(flat) // SOME)], flat.aminmax().min[None], flat.aminmax().max[None]])
