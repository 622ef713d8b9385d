"""Write one safetensors file tensor by tensor, in any order, holding one at a time.

The header is made first, from types and shapes alone; each tensor then goes to its place.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from tersor.language.folder import Spec
from tersor.maths.bits import raw

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def nbytes(spec: Spec) -> int:
    """Bytes of the values of a tensor."""
    return prod(spec.shape) * torch.empty(0, dtype=DTYPES[spec.dtype]).element_size()


class Writer:
    """A file at `path` that will hold the tensors of `specs`; a context, complete when every tensor was `put`."""

    def __init__(self, path: Path, specs: Mapping[str, Spec]):
        self._specs, self._starts, self._missing = dict(specs), {}, set(specs)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, spec in self._specs.items():
            start, end = end, end + nbytes(spec)
            header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
            self._starts[name] = start
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # as the format asks for
        self._data = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.truncate(self._data + end)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write `tensor`, which is what `specs` said of `name`."""
        seen = Spec(NAMES[tensor.dtype], tuple(tensor.shape))
        if seen != self._specs[name]:
            raise ValueError(f"{name} is {seen}; the header says {self._specs[name]}.")
        self._file.seek(self._data + self._starts[name])
        self._file.write(raw(tensor).numpy().data)
        self._missing.discard(name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{len(self._missing)} tensors were never written, the first {min(self._missing)}.")
