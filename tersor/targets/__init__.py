"""One target each; the file name is the name a user types."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tersor.errors import KILLED, InputError, TargetError
from tersor.target import Runner, Target


def timed(
    folder: str, target: list[str], example: str, threads: int, rehearsed: Sequence[str] = ()
) -> Callable[[], object]:
    """In the clock's child process: the call that is timed, which is that of the README. rehearsed: files of batches as it will
    be judged on, which another process predicts first.

    Raises `TargetError` where that process is ended by a signal, as this command's own would be.
    """

    def loaded() -> Runner:
        return target_called(*target).load(Path(folder), threads)

    def predicted() -> None:
        runner = loaded()
        for file in rehearsed:
            runner.predict(*_arrays(file))

    if rehearsed and hasattr(os, "fork"):
        number = _ended_by(predicted)
        if number:
            raise TargetError(f"predicting a batch of held-out data, {KILLED} {signal.Signals(number).name}.")
    return loaded().call(*_arrays(example))


def _arrays(file: str) -> list[np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return [stored[key] for key in sorted(stored.files)]


def _ended_by(work: Callable[[], None]) -> int:
    """The signal that ended a process which did `work`; 0 where it ended by itself, whatever it raised."""
    process = os.fork()  # before a runtime has threads
    if not process:
        with suppress(BaseException):  # it is raised again where it is judged
            work()
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def target_name(target: Target) -> tuple[str, ...]:
    """(file, precision), and the placement where it is not the standard one: how a target is written into a recipe."""
    name = type(target).__module__.rpartition(".")[2], target.precision
    return name if target.placement == "standard" else (*name, target.placement)


def target_called(file: str, precision: str, placement: str = "standard") -> Target:
    """The target of `targets/<file>.py` with that precision and placement. Raises `InputError` where there is none."""
    for target in _instances(file):
        if target.precision == precision:
            if placement == target.placement:
                return target
            if placement in target.placements:
                return type(target)(precision, placement)  # type: ignore[call-arg]
            raise InputError(
                f"The target {file} has no placement {placement!r}; it knows {', '.join(target.placements)}."
            )
    raise InputError(f"The target {file} has no precision {precision!r}; it knows {_precisions(file)}.")


def targets_called(names: str) -> list[Target]:
    """The targets that `names` lists, separated by commas; "auto" is every one.

    A file name (`openvino`) stands for all precisions it knows, `openvino:int8` for one, `openvino:int8:signed` for one
    of its placements.
    """
    found = []
    for file, *exact in _asked(names):
        found += [target_called(file, *exact)] if exact else list(_instances(file))
    return found


def refuse_strangers(names: str) -> None:
    """Raises `InputError` where `names` lists a file that is no target; imports none of them."""
    _asked(names)


def _asked(names: str) -> list[list[str]]:
    known = sorted(m.name for m in pkgutil.iter_modules(__path__))
    asked = known if names == "auto" else [n.strip() for n in names.split(",")]
    for name in asked:
        if name.partition(":")[0] not in known:
            raise InputError(
                f"There is no target {name.partition(':')[0]!r}; choose auto or any of {', '.join(known)}."
            )
    return [name.split(":", 2) for name in asked]


def _instances(file: str) -> Iterator[Target]:
    known = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if file not in known:  # it may come from a file: nothing else is imported
        raise InputError(f"There is no target {file!r}; choose auto or any of {', '.join(known)}.")
    module = importlib.import_module(f"{__name__}.{file}")
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if kind.__module__ == module.__name__ and issubclass(kind, Target):
            for precision in kind.precisions:
                yield kind(precision)  # type: ignore[call-arg]


def _precisions(file: str) -> str:
    return ", ".join(t.precision for t in _instances(file))
