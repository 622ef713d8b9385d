"""What a command's words say of a training, and what it says of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tersor.errors import InputError
from tersor.recovery.course import History
from tersor.recovery.wish import AUTO, Recovery
from tersor.units import duration, several

SETTINGS: Mapping[str, Callable[[str], Any]] = {
    "optimizer": str,
    "schedule": str,
    "batch": int,
    "average": float,
    "precision": str,
    "rank": int,
    "norms": str,
    "decay": float,
    "device": str,
    "accumulate": int,
    "clip": float,
    "warm_up": float,
    "workers": int,
    "enough": str,
    "save_every": str,
    "keep": str,
    "sharded": lambda word: {"true": True, "false": False}[word.lower()],
}
"""What `settings` reads, and how."""


def recovery(
    length: str | None, loss: str, rate: float | None, augment: str, training: Sequence[str] | None
) -> Recovery | None:
    """What --recover and the options beside it ask for. Raises `InputError`, also where the others stand without it."""
    given = {"--loss": loss != AUTO, "--rate": rate is not None, "--augment": augment, "--training": training}
    lost = [name for name, said in given.items() if said]
    if length is None and lost:
        raise InputError(
            f"{', '.join(lost)} {'configure' if len(lost) > 1 else 'configures'} training, but nothing is trained without "
            f"--recover; add for example --recover 2epochs, or leave {'them' if len(lost) > 1 else 'it'} out."
        )
    return Recovery.of(length, loss=loss, rate=rate, augment=augment, **settings(training))


def settings(words: Sequence[str] | None) -> dict[str, Any]:
    """Further arguments of `Recovery.of` from "name=value" each. Raises `InputError`."""
    found = {}
    for word in words or ():
        name, _, value = (part.strip() for part in word.partition("="))
        name = "optimizer" if name == "optimiser" else name
        if name not in SETTINGS:
            raise InputError(
                f"There is no training setting '{word}'; write one of {', '.join(f'{n}=...' for n in SETTINGS)}."
            )
        try:
            found["optimiser" if name == "optimizer" else name] = SETTINGS[name](value)  # as `Recovery.of` calls it
        except (ValueError, KeyError):
            like = "true" if name == "sharded" else "32"
            raise InputError(
                f"The training setting '{word}' cannot be read; write for example {name}={like}."
            ) from None
    return found


def course(history: History, relative: bool) -> str:
    """How a training went, in a sentence; `relative`: what was lost is a share of the score, not points."""
    took = f"trained {several(history.steps, 'step')} in {duration(history.seconds)}"
    if history.returns:
        steps = ", ".join(map(str, history.returns))
        took += f" (the loss diverged; went back to the best state at half the learning rate after step {steps})"
    unit, lost = "%" if relative else "points", [100 * value for _, value in history.judged]
    if len(lost) < 2:
        if history.stopped:
            return f"not trained: the drop on held-out data is {_rounded(lost[0])} {unit}, within the limit"
        return took
    epochs = len(lost) - 1
    best = epochs if history.last else min(reversed(range(len(lost))), key=lost.__getitem__)  # the latest of equals
    if best:
        end = ", within the limit" if history.stopped else ""
        after = f"{_rounded(lost[best])} after epoch {best} of {epochs}{end}"
        return f"{took}: drop on held-out data {_rounded(lost[0])} {unit} before, {after}"
    return (
        f"{took}: drop on held-out data {_rounded(lost[0])} {unit} before and {_rounded(min(lost[1:]))} at best after an "
        "epoch, so the weights from before the training were kept; try a longer --recover, another --rate, or, if the "
        "original was trained on this data, --training keep=last"
    )


def _rounded(value: float) -> str:
    """Two digits; nothing is never negative."""
    return f"{round(value, 2) + 0.0:.2f}"
