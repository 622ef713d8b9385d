"""The example inputs of an exported program: the one pickle in its file.

`torch.export.load` reads it with `weights_only=True` and, where that fails, without: then a pickle may call anything. So it is
unpickled here first, in pure Python, by a reader for which only the words exist that a tensor needs; each stands for a
description, and nothing is built. What passes cannot do anything else in torch.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tersor.hub.schema import Foreign

_LEAVES = 10_000
_AXES = 64  # torch takes no more
_BUILDING = (pickle.BUILD, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ)  # objects, or changes of them
_SETS = (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)  # which torch writes as calls
_SPREAD = 1 << 20  # values that a tensor of few bytes may repeat by strides of zero


@dataclass(frozen=True)
class _Kept:
    """A storage: the record that holds it, and its values."""

    record: str
    values: int
    itemsize: int


@dataclass(frozen=True)
class _Described:
    """A tensor that was not built."""

    values: int


@dataclass(frozen=True)
class _Storage:
    """A class of storages (`torch.FloatStorage`), or a dtype where there is none."""

    itemsize: int


class _Reader(pickle._Unpickler):  # the one in Python: its memo cannot be made to take memory
    dispatch = {  # noqa: RUF012
        code: read for code, read in pickle._Unpickler.dispatch.items() if bytes([code]) not in (*_BUILDING, *_SETS)
    }

    def __init__(self, data: bytes, records: Mapping[str, int]):
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._records = records

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch |= {
        pickle.DICT[0]: load_dict,  # type: ignore[dict-item]
        pickle.SETITEM[0]: load_setitem,  # type: ignore[dict-item]
        pickle.SETITEMS[0]: load_setitems,  # type: ignore[dict-item]
    }

    def find_class(self, module: str, name: str) -> Any:
        found = _WORDS.get((module, name))
        if found is None:
            raise Foreign(f"example inputs that name {f'{module}.{name}'[:80]!r}")
        return found

    def persistent_load(self, saved: Any) -> Any:
        match saved:
            case ("storage", _Storage(itemsize), str(record), str(place), int(values)):
                pass
            case _:
                raise Foreign("example inputs with a storage of another kind")
        if place != "cpu" and not place.startswith("cuda"):
            raise Foreign(f"example inputs on {place[:40]!r}")
        if values < 0 or self._records.get(record, -1) < values * itemsize:
            raise Foreign(f"example inputs of {values} values in a record of {self._records.get(record, 0)} bytes")
        return _Kept(record, values, itemsize)


def check(data: bytes) -> None:
    """Raise `Foreign` where `data` holds anything but tensors, numbers and words in tuples, lists and dicts."""
    if not data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            _check_members(inner, len(data))
            records = {i.filename.partition("/")[2]: i.file_size for i in inner.infolist()}
            if "data.pkl" not in records:
                raise Foreign("example inputs that are not plain tensors")
            stored = {name.removeprefix("data/"): size for name, size in records.items() if name.startswith("data/")}
            found = _Reader(inner.read(f"{inner.infolist()[0].filename.partition('/')[0]}/data.pkl"), stored).load()
        _check_leaves(found, len(data))
        torch.load(io.BytesIO(data), weights_only=True)
    except Foreign:
        raise
    except Exception as cause:  # whatever a pickle of another kind makes of the reader
        raise Foreign("example inputs that are not plain tensors") from cause


def _check_members(inner: zipfile.ZipFile, size: int) -> None:
    members = inner.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        raise Foreign("compressed example inputs")
    if len({m.filename.partition("/")[2] for m in members}) < len(members):
        raise Foreign("example inputs in two members of one name")
    if inner.testzip() is not None:
        raise Foreign("damaged example inputs")


def _check_leaves(found: Any, size: int) -> None:
    left, count = [found], 0
    while left:
        count += 1
        if count > _LEAVES:  # a list that holds itself has no end
            raise Foreign(f"more than {_LEAVES} example inputs")
        each = left.pop()
        if isinstance(each, tuple | list | set):
            left += each
        elif isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, _Described):
            if each.values > 16 * size + _SPREAD:
                raise Foreign(f"an example input of {each.values} values in a file of {size} bytes")
        elif not (each is None or isinstance(each, bool | int | float | str | torch.dtype | _Described)):
            raise Foreign("example inputs that are not plain tensors")


def _check_keys(keys: Iterable[Any]) -> None:
    """Raise `Foreign` where one is anything but a word or a number: tuples of tuples of tuples take for ever to hash."""
    for key in keys:
        if not (key is None or type(key) in (str, int, bool)):
            raise Foreign(f"example inputs under a {type(key).__name__}, and names or numbers were wanted")


def _set(values: Any = ()) -> set:
    _check_keys(values)
    return set(values)


def _ordered(pairs: Any = ()) -> OrderedDict:
    found = [(key, value) for key, value in pairs]
    _check_keys(key for key, _ in found)
    return OrderedDict(found)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> _Described:
    whole = isinstance(storage, _Kept) and type(offset) is int and type(size) is tuple and type(stride) is tuple
    if (
        not whole
        or len(size) != len(stride)
        or len(size) > _AXES
        or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    ):
        raise Foreign("example inputs that are not plain tensors")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.values:
        raise Foreign(f"an example input that ends at {last} of {storage.values} values")
    if more and not (type(more[0]) is bool and len(more) <= 2):
        raise Foreign("example inputs that are more than plain tensors")
    return _Described(math.prod(size))


def _typed_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> _Described:
    """Types that have no storage class of their own (uint16, float8): the storage is of bytes."""
    if not isinstance(dtype, torch.dtype) or not isinstance(storage, _Kept):
        raise Foreign("example inputs that are not plain tensors")
    values = storage.values * storage.itemsize // dtype.itemsize
    return _tensor(_Kept(storage.record, values, dtype.itemsize), offset, size, stride, grad, hooks)


def _with_notes(function: Any, kind: Any, args: Any, notes: Any) -> _Described:
    """A tensor with attributes, as torch.export leaves them on its example: `_specialize_on`, `_dynamo_...`."""
    plain = (
        function in (_tensor, _typed_tensor) and kind is torch.Tensor and type(args) is tuple and type(notes) is dict
    )
    if not plain or not all(type(n) is str and n.startswith(("_specialize_on", "_dynamo_")) for n in notes):
        raise Foreign("example inputs with attributes of their own")
    _check_leaves(notes, 0)
    found: _Described = function(*args)
    return found


_DTYPES = [each for each in vars(torch).values() if isinstance(each, torch.dtype)]
_CLASSES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_WORDS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_notes,
    ("torch", "Tensor"): torch.Tensor,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("torch.storage", "UntypedStorage"): _Storage(1),
    **{("torch", f"{name}Storage"): _Storage(dtype.itemsize) for name, dtype in _CLASSES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
}
