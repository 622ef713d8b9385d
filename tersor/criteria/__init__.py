"""What a weight is worth: one criterion a file, the file's name is what a user types."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from importlib import import_module

from tersor.criterion import Criterion
from tersor.errors import InputError


def criterion_called(word: str) -> Criterion:
    """The criterion in the file called `word`, with its standard settings. Raises `InputError` for an unknown word."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if word not in names:
        raise InputError(f"There is no criterion {word!r}; choose one of {', '.join(names)}.")
    module = import_module(f"{__name__}.{word}")
    kinds = (kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__)
    return next(kind() for kind in kinds if dataclasses.is_dataclass(kind) and issubclass(kind, Criterion))
