"""Frozen dataclasses to JSON and back, every value checked against its declared type.

Types that may occur: dataclasses, `tuple[X, ...]`, `Mapping[str, X]`, `X | None`, str, int, float, bool and Any.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from tersor.errors import ArtifactError


def plain(value: Any) -> Any:
    """`value` as JSON; a number that is not finite becomes None."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return json.loads(json.dumps(value, default=str))


def record(kind: Any, value: Any, where: str) -> Any:
    """JSON `value` as a `kind`. Raises `ArtifactError` that says `where` it is something else."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else record(next(k for k in inner if k is not type(None)), value, where)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _dataclass(typing.cast(type, kind), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(record(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {k: record(inner[1], v, f"{where}[{k!r}]") for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) < 1 << 1000:  # which a float can hold
        return float(value)
    if kind is float and value is None:
        return math.nan
    if type(value) is kind:
        return value
    raise ArtifactError(f"The report has {type(value).__name__} at {where}, which is something else; it was damaged.")


def _dataclass(kind: type, value: Mapping[str, Any], where: str) -> Any:
    known = typing.get_type_hints(kind)
    unknown = sorted(value.keys() - known.keys())
    if unknown:
        raise ArtifactError(f"The report has an unknown field {unknown[0]!r} at {where}; use the Tersor that wrote it.")
    try:
        return kind(**{name: record(known[name], v, f"{where}.{name}") for name, v in value.items()})
    except TypeError as cause:
        raise ArtifactError(f"The report lacks a field at {where}: {cause}.") from cause
