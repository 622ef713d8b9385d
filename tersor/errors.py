"""Every error that a user can cause, drawn as a tree.

Each message is one sentence or two that say what was seen, what was wanted and what to do; the command line prints it
without a traceback and exits with `exit_code`.

    TersorError
    ├── InputError            what the user brought
    │   ├── ModelError        the model: NaN weights, already quantized, cannot be exported
    │   ├── DataError         the data: empty, Inf, all zero, wrong shapes
    │   ├── MetricError       the metric: unknown, raises, returns no number
    │   └── RecipeError       a saved recipe that does not fit the model
    ├── BudgetError           nothing inside the budget; says the best that was reached
    ├── TargetError           the place where it should run
    │   ├── MissingRuntime    not installed; says what to install
    │   └── ExportError       the runtime or the exporter refuses the model
    ├── ArtifactError         a folder that is not, or no longer, what its manifest says
    └── StorageError          the disk: read-only, full, in use
"""

from __future__ import annotations


class TersorError(Exception):
    """Root of all errors that a user can cause."""

    exit_code = 1


class InputError(TersorError):
    """What the user brought cannot be used."""

    exit_code = 2


class ModelError(InputError):
    """The model holds NaN or Inf, is already quantized, or cannot be captured."""


class DataError(InputError):
    """The data is empty, not finite, constant, or does not fit the model."""


class MetricError(InputError):
    """The metric is unknown, raised, or returned something that is no number."""


class RecipeError(InputError):
    """A saved recipe names what the model does not have."""


class BudgetError(TersorError):
    """No artifact was inside the budget; the message says the best that was reached."""

    exit_code = 3


class TargetError(TersorError):
    """The place where the model should run cannot run it."""

    exit_code = 4


class MissingRuntime(TargetError):
    """The runtime is not installed; the message says what to install and the cause is kept."""


class ExportError(TargetError):
    """The exporter or the runtime refuses the model; the message names the user's line where it is known."""


class ArtifactError(TersorError):
    """The folder is not, or no longer, what its manifest says."""

    exit_code = 5


class StorageError(TersorError):
    """The disk is read-only, full, or the folder is not ours to replace."""

    exit_code = 6


class DataWarning(UserWarning):
    """Something about the data that looks like a mistake, and may be meant."""


class LimitWarning(UserWarning):
    """The time limit cut something short; what came out is the best by then."""


KILLED = "its process ended with signal"
"""What the sentence on a runtime that crashed says of it."""


def reason(cause: BaseException) -> str:
    """An error as a clause of a sentence: one of ours as it is written, of another its type and first line."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, TersorError):
        return str(cause)
    return f"{type(cause).__name__}: {lines[0][:300].rstrip('.')}." if lines else f"{type(cause).__name__}."
