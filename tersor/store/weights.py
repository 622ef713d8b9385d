"""Weights to one file and back: tensors by safetensors, the trees as JSON in its header.

Reading runs no code of the file's: a form is named "file.Class", and only classes that `forms/<file>.py` itself defines
are accepted.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tersor import foreign, forms
from tersor.errors import ArtifactError
from tersor.store.files import atomic_write
from tersor.weight import Weight

_VERSION = 1
_DEEPEST = 32


def write(path: Path, weights: Mapping[str, Weight]) -> None:
    """Write weights by parameter name. The same weights give the same bytes. Raises `StorageError`."""
    atomic_write(path, to_bytes(weights))


def read(path: Path, largest: int = 1 << 34) -> dict[str, Weight]:
    """The weights that `write` wrote. Raises `ArtifactError` where the file is damaged or above `largest` bytes."""
    try:
        size = os.stat(path).st_size
        if size > largest:
            raise ArtifactError(f"{path} has {size} bytes and at most {largest} are read; it was damaged.")
        data = path.read_bytes()
    except OSError as cause:
        raise ArtifactError(f"{path} cannot be read: {cause.strerror}.") from cause
    return from_bytes(data, str(path))


def to_bytes(weights: Mapping[str, Weight]) -> bytes:
    """The file that `write` writes."""
    content, tensors = apart(weights)
    header = json.dumps(content, sort_keys=True, allow_nan=False)
    alone = {
        name: tensor.contiguous().clone() for name, tensor in tensors.items()
    }  # safetensors takes none that share memory
    return save(alone, {"tersor": header})


def apart(weights: Mapping[str, Weight]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `together` makes weights of: JSON values, and tensors by name, which are not copied."""
    tensors: dict[str, Tensor] = {}
    trees = {name: _tree(weight, name, tensors) for name, weight in sorted(weights.items())}
    return {"version": _VERSION, "weights": trees}, tensors


def together(content: Any, tensors: Mapping[str, Tensor], name: str = "the file") -> dict[str, Weight]:
    """The weights that were taken apart. Raises `ArtifactError` where they do not fit."""
    try:
        if content["version"] != _VERSION:
            raise ArtifactError(f"{name} has weights of version {content['version']!r}; use the Tersor that wrote it.")
        return {key: _weight(tree, tensors, name) for key, tree in content["weights"].items()}
    except ArtifactError:
        raise
    except Exception as cause:  # forms whose parts do not fit
        raise ArtifactError(
            f"{name} does not hold weights as Tersor writes them ({foreign.said(cause)}); it was damaged."
        ) from cause


def from_bytes(data: bytes, name: str = "the file") -> dict[str, Weight]:
    """The weights in what `to_bytes` gave."""
    header = metadata(data, name).get("tersor", "")
    try:
        tensors, content = load(data), json.loads(header)
    except Exception as cause:  # safetensors and json
        raise ArtifactError(
            f"{name} does not hold weights as Tersor writes them ({foreign.said(cause)}); it was damaged."
        ) from cause
    return together(content, tensors, name)


def metadata(data: bytes, name: str) -> dict[str, str]:
    """The strings in the header of a safetensors file. Raises `ArtifactError`."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 100 << 20):
        raise ArtifactError(f"{name} is no safetensors file: its header would have {length} bytes; it was damaged.")
    try:
        found = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        return {str(key): str(value) for key, value in found.items()}
    except Exception as cause:  # json, and what stands there instead of a table
        raise ArtifactError(f"{name} is no safetensors file: its header is no JSON ({foreign.said(cause)}).") from cause


def _tree(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu()
        return {"tensor": path}
    if isinstance(value, Weight):
        kind = type(value)
        parts = {f.name: _tree(getattr(value, f.name), f"{path}/{f.name}", tensors) for f in fields(value)}  # type: ignore[arg-type]
        return {"form": f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}", "fields": parts}
    if isinstance(value, tuple):
        return {"tuple": [_tree(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}; weights hold tensors, numbers, strings, tuples and weights.")


def _weight(tree: Any, tensors: Mapping[str, Tensor], name: str) -> Weight:
    found = _value(tree, tensors, name, 0)
    if not isinstance(found, Weight):
        raise ArtifactError(f"{name} holds a {type(found).__name__} where a weight was wanted; it was damaged.")
    return found


def _value(tree: Any, tensors: Mapping[str, Tensor], name: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ArtifactError(f"{name} nests weights more than {_DEEPEST} deep; it was damaged.")
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise ValueError("a list stands where a value was wanted")
        return tree
    if tree.keys() == {"tensor"}:
        return tensors[tree["tensor"]]
    if tree.keys() == {"tuple"}:
        return tuple(_value(v, tensors, name, depth + 1) for v in tree["tuple"])
    if tree.keys() == {"dtype"}:
        found = getattr(torch, tree["dtype"])
        if not isinstance(found, torch.dtype):
            raise ValueError(f"torch.{tree['dtype']} is no dtype")
        return found
    if tree.keys() != {"form", "fields"}:
        raise ValueError(f"an entry has the fields {sorted(tree)}")
    kind = form_called(tree["form"])
    parts = {key: _value(v, tensors, name, depth + 1) for key, v in tree["fields"].items()}
    if parts.keys() != {f.name for f in fields(kind)}:  # type: ignore[arg-type]
        raise ValueError(f"{tree['form']} has the fields {sorted(parts)}")
    return kind(**parts)


def form_called(path: str) -> type[Weight]:
    """The form named "file.Class". Raises `ArtifactError` where `forms/` defines no such class."""
    file, _, name = path.partition(".")
    if file in {module.name for module in pkgutil.iter_modules(forms.__path__)}:
        module = importlib.import_module(f"{forms.__name__}.{file}")
        kind = vars(module).get(name)
        if isinstance(kind, type) and issubclass(kind, Weight) and kind.__module__ == module.__name__:
            return kind
    raise ArtifactError(f"There is no form {path!r} in this Tersor; use the version that wrote the file.")
