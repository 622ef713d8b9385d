"""Functions that a user names on the command line: `path/to/file.py:function` or `package.module:function`.

What goes wrong inside a user's function is reported with the line of the user's file, never as a traceback of ours.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import linecache
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tersor.errors import InputError, TersorError


def named(spec: str, what: str, error: type[InputError]) -> Callable[..., Any]:
    """The function that `spec` names. Raises `error` that says what was looked for and what is there."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise error(f"{what} '{spec}' names no function; write path/to/file.py:function or package.module:function.")
    module = _from_file(Path(place), what, error) if place.endswith(".py") else _from_package(place, what, error)
    found = getattr(module, name, None)
    if not callable(found):
        has = ", ".join(_functions(module)) or "no functions"
        problem = "has no function" if found is None else f"has no function but a {type(found).__name__} called"
        raise error(f"{what} '{spec}': {place} {problem} '{name}'; it has: {has}.")
    return found


def called(function: Callable[..., Any], what: str, error: type[InputError], *args: Any) -> Any:
    """`function(*args)`; what it raises becomes `error` with the user's line."""
    try:
        return function(*args)
    except TersorError:
        raise
    except Exception as cause:
        raise error(f"{what} raised {said(cause)}.") from cause


def said(cause: BaseException) -> str:
    """An exception as one line, with the innermost line of the user's own files."""
    text = " ".join(str(cause).split())
    what = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    if isinstance(cause, SyntaxError) and cause.filename:
        return f"{what} (line {cause.lineno} of {cause.filename})"
    lines = [f for f in traceback.extract_tb(cause.__traceback__) if _is_users(f.filename)]
    if not lines:
        return what
    last = lines[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"{what} at line {last.lineno} of {last.filename} (`{code}`)"


def _from_file(path: Path, what: str, error: type[InputError]) -> ModuleType:
    if not path.is_file():
        raise error(f"{what}: there is no file '{path}'.")
    path = path.resolve()
    content = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:12]
    name = f"_tersor_{path.stem}_{content}"  # by content, so that an edited file is read again and an equal one is not
    if name in sys.modules:
        return sys.modules[name]
    _importable(path.parent)
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise error(f"{what}: '{path}' cannot be imported as Python.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except BaseException as cause:
        del sys.modules[name]
        if not isinstance(cause, Exception):
            raise
        raise error(f"{what}: importing '{path}' raised {said(cause)}.") from cause
    return module


def _from_package(name: str, what: str, error: type[InputError]) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name and not (name == cause.name or name.startswith(cause.name + ".")):
            raise error(f"{what}: importing '{name}' raised {said(cause)}.") from cause
        raise error(
            f"{what}: there is no module '{cause.name}'; for a file write path/to/file.py:function, "
            "for a package install it or run where it is."
        ) from cause
    except Exception as cause:
        raise error(f"{what}: importing '{name}' raised {said(cause)}.") from cause


def _importable(folder: Path) -> None:
    # as `python file.py` does, so that the user's file can import its neighbours
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _functions(module: ModuleType) -> list[str]:
    own = (n for n, f in vars(module).items() if callable(f) and getattr(f, "__module__", None) == module.__name__)
    return sorted(n for n in own if not n.startswith("_"))


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    ours = str(Path(__file__).resolve().parents[1])
    libraries = (ours, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *site.getsitepackages())
    return not any(Path(filename).is_relative_to(each) for each in libraries)


def origin(value: Any) -> str:
    """How a Python object is called in a message: its function or class name."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    return type(value).__name__
