"""The bar of a terminal: a stage, how far along it is, and what time it takes; what is not known is not shown."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from tersor.units import duration


class _Times(ProgressColumn):
    """Such as "12/400, 4 s, 2 min 10 s left", or the time so far alone."""

    def render(self, task: Task) -> Text:
        done = [f"{task.completed:.0f}/{task.total:.0f}"] if task.total else []
        left = [] if task.time_remaining is None else [f"{duration(task.time_remaining)} left"]
        return Text(", ".join([*done, duration(task.elapsed or 0.0), *(left if done else [])]))


def bar() -> Progress:
    """A bar on stderr; the stage has as many lines as it needs."""
    stage = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1))
    columns = (SpinnerColumn(), stage, BarColumn(bar_width=20), _Times(table_column=Column(no_wrap=True)))
    return Progress(*columns, console=Console(stderr=True), transient=True)
