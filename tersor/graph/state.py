"""What a module holds besides its graph, kept while it is called: a forward pass may move buffers, counters and lists.

`Kept` takes a picture of every submodule's attributes, puts them back, and says which have moved.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DEPTH = 3  # containers within containers and plain objects: deeper ones are not looked into
_SHORT = 100  # entries of a container outside of modules: longer ones are not looked into
_PLAIN = bool | int | float | complex | str | bytes | None
_LIBRARIES = ("torch", "builtins", "numpy")


class Kept:
    """A picture of a module's buffers and Python attributes, and of its parameters where `parameters` says so.

    Parameters take as much memory again; without them they are not looked at.
    """

    def __init__(self, module: nn.Module, parameters: bool = False):
        self._module = module
        self._pictures: list[_Picture] = []
        seen: set[int] = set()
        for place, each in module.named_modules():
            self._take(place, vars(each), 0, seen, parameters)

    def moved(self) -> list[str]:
        """The names of what is not as it was, without what was None or absent and is filled now (a cache)."""
        return list(dict.fromkeys(name for picture in self._pictures for name in picture.moved()))

    def restore(self, caches: bool = True) -> None:
        """Put everything back; `caches` False leaves what was None or absent and is filled now."""
        for picture in self._pictures:
            picture.restore(caches)

    def _take(self, place: str, value: Any, depth: int, seen: set[int], parameters: bool) -> None:
        if id(value) in seen or depth > _DEPTH:
            return
        if isinstance(value, nn.Parameter) and not parameters:
            return
        if isinstance(value, nn.Module) or not isinstance(value, dict | list | set | deque | Tensor | np.ndarray):
            if not isinstance(value, nn.Module) and _has_attributes(value):
                self._take(place, vars(value), depth, seen, parameters)
            return
        seen.add(id(value))
        if isinstance(value, Tensor | np.ndarray):
            picture = _array(place, value)
            if picture is not None:
                self._pictures.append(picture)
            return
        self._pictures.append(_Container(place, value))
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in list(inside):
            self._take(_joined(place, key), each, depth + 1, seen, parameters)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[Kept]:
    """Call `module` here as often as one likes, in evaluation mode: afterwards it is as it was."""
    modes = [(each, each.training) for each in module.modules()]
    for each, _ in modes:
        each.training = False
    kept = Kept(module)
    try:
        yield kept
    finally:
        kept.restore()
        for each, training in modes:
            each.training = training


def loose(module: nn.Module) -> dict[str, str]:
    """What plain values are that no module holds, and that forward passes may change: those of the user's classes and files."""
    found: dict[str, str] = {}
    for each in module.modules():
        kinds = [kind for kind in type(each).__mro__ if not kind.__module__.startswith(_LIBRARIES)]
        for kind in kinds:
            found.update(_written(f"{kind.__name__}.", vars(kind)))
        if kinds:
            around = getattr(inspect.unwrap(each.forward), "__globals__", {})
            found.update(_written("", around))
            for name, kind in around.items():
                if isinstance(kind, type) and kind.__module__ == around.get("__name__"):
                    found.update(_written(f"{name}.", vars(kind)))
    return found


def _written(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in list(values.items()):
        short = isinstance(value, list | dict | set | deque) and len(value) <= _SHORT
        if not name.startswith("__") and (
            isinstance(value, _PLAIN) or (short and all(isinstance(v, _PLAIN) for v in value))
        ):
            yield prefix + name, repr(value)


class _Picture:
    def __init__(self, place: str):
        self.place = place

    def moved(self) -> Iterator[str]:
        raise NotImplementedError

    def restore(self, caches: bool) -> None:
        raise NotImplementedError


class _Container(_Picture):
    """Which objects a dict, list, set or deque holds."""

    def __init__(self, place: str, value: Any):
        super().__init__(place)
        self._value, self._held = value, value.copy()

    def moved(self) -> Iterator[str]:
        if isinstance(self._value, dict):
            for key, was in self._held.items():
                if was is not None and not _same(was, self._value.get(key)):
                    yield _joined(self.place, key)
        elif len(self._value) != len(self._held) or not all(
            _same(a, b) for a, b in zip(self._held, self._value, strict=False)
        ):
            yield self.place

    def restore(self, caches: bool) -> None:
        value, held = self._value, self._held
        if isinstance(value, dict):
            kept = {} if caches else {k: v for k, v in value.items() if held.get(k) is None and v is not None}
            if kept or list(value) != list(held) or any(value[k] is not held[k] for k in held):
                value.clear()
                value.update(held)
                value.update(kept)
        elif isinstance(value, list):
            value[:] = held
        else:
            value.clear()
            value.update(held) if isinstance(value, set) else value.extend(held)


class _Array(_Picture):
    """What the values of a tensor or an array are."""

    def __init__(self, place: str, value: Any, copy: Any, put: Callable[[], Any]):
        super().__init__(place)
        self._value, self._copy, self._put = value, copy, put

    def moved(self) -> Iterator[str]:
        if not _equal(self._value, self._copy):
            yield self.place

    @torch.no_grad()
    def restore(self, caches: bool) -> None:
        if not _equal(self._value, self._copy):
            self._put()


def _array(place: str, value: Any) -> _Array | None:
    if isinstance(value, np.ndarray):
        copy = value.copy()
        return _Array(place, value, copy, lambda: np.copyto(value, copy))
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.device.type == "meta" or value.is_quantized:
        return None
    if value.layout is not torch.strided:
        return None
    saved = value.detach().clone()
    return _Array(place, value, saved, lambda: value.data.copy_(saved))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.tobytes() == b.tobytes()
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    same = a.detach() == b
    return bool((same | ((a.detach() != a.detach()) & (b != b))).all())  # NaN is as it was where it is NaN


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, _PLAIN) and type(a) is type(b) and (a == b or (a != a and b != b)))


def _has_attributes(value: Any) -> bool:
    """Whether it is an object of some user's class that may hold state."""
    if isinstance(value, type) or not hasattr(value, "__dict__") or callable(value):
        return False
    return not type(value).__module__.startswith(_LIBRARIES)


def _joined(place: str, key: Any) -> str:
    if key in ("_parameters", "_buffers", "_modules"):
        return place
    return f"{place}.{key}" if place else str(key)
