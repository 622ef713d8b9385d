"""Losses: one a file, the file's name is what a user types.

0.9 * kl(temperature=4) + 0.1 * cross_entropy
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from importlib import import_module
from typing import Any

from tersor.errors import InputError
from tersor.loss import Loss


def loss_called(text: str) -> Loss:
    """The loss that an expression of names, numbers, `*` and `+` means. Raises `InputError` for anything else."""
    try:
        found = _read(ast.parse(text.strip(), mode="eval").body)
    except InputError:
        raise
    except Exception as cause:  # what Python's parser makes of noise
        raise _unreadable(text) from cause
    if not isinstance(found, Loss):
        raise _unreadable(text)
    return found


def names() -> list[str]:
    """What can be typed."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _read(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) < 1e30:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Add):
        left, right = _read(node.left), _read(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(left, Loss) != isinstance(right, Loss):
            return left * right
        if isinstance(node.op, ast.Add) and isinstance(left, Loss) and isinstance(right, Loss):
            return left + right
    if isinstance(node, ast.Name):
        return _called(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return _called(node.func.id, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords})
    raise _unreadable(ast.unparse(node))


def _number(node: ast.AST) -> float:
    found = _read(node)
    if isinstance(found, Loss):
        raise _unreadable(ast.unparse(node))
    return found


def _called(word: str, settings: dict[str, Any]) -> Loss:
    if word not in names():
        raise InputError(f"There is no loss {word!r}; choose one of {', '.join(names())}.")
    module = import_module(f"{__name__}.{word}")
    kinds = (kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__)
    kind = next(kind for kind in kinds if dataclasses.is_dataclass(kind) and issubclass(kind, Loss))
    known = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(f"The loss {word} has no setting {unknown[0]!r}; it has {', '.join(known)}.")
    try:
        return kind(**settings)
    except TypeError as cause:
        raise InputError(
            f"The loss {word} cannot be made of these settings: {cause}; it has {', '.join(known)}."
        ) from cause


def _unreadable(text: str) -> InputError:
    return InputError(
        f"The loss {text!r:.200} cannot be read; write a sum such as 0.9 * kl(temperature=4) + 0.1 * cross_entropy, of "
        f"{', '.join(names())}."
    )
