"""What a command shows: results on stdout, progress, warnings and errors on stderr."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def results(as_json: bool) -> Iterator[IO[str]]:
    """Where results are written. With `--json` nothing else reaches stdout, whatever user code or a runtime prints."""
    if not as_json:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_json(stream: IO[str], value: Any) -> None:
    """`value` (records, mappings, sequences, paths, numbers) as JSON; a number that is not finite becomes null."""
    stream.write(json.dumps(_plain(value), indent=1) + "\n")
    stream.flush()


def hush() -> None:
    """Show what Tersor itself warns of as one line, and nothing of what the libraries log."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"tersor(\.|$)")
    warnings.showwarning = _Shown()


def seen(sentence: str) -> bool:
    """Whether who reads what is printed now has read `sentence` as a warning, on the same terminal."""
    shown = warnings.showwarning
    return isinstance(shown, _Shown) and sentence in shown.said and sys.stdout.isatty() and sys.stderr.isatty()


def say(sentences: Iterable[str]) -> None:
    """Print a sentence a line, where there is one."""
    for sentence in filter(None, sentences):
        print(sentence)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Print a table; the columns in `numbers` are aligned to the right. Cells are shown as they are, never as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for i, name in enumerate(header):
        found.add_column(name, justify="right" if i in numbers else "left", overflow="fold")
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a file or a pipe has no width to keep
    console.print(found)


class _Shown:
    """Shows each warning as a line, in place of `warnings.showwarning`, and remembers it."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        self.said.add(str(message))
        print(f"warning: {message}", file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value
