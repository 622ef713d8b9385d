"""The command line of a benchmark that appends one line: judged on test data, unless it is being developed."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment

Line = dict[str, Any]


def parser(doc: str | None, results: Path, threads: int) -> argparse.ArgumentParser:
    """The options that every such benchmark has; add others to it."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    found.add_argument("--threads", type=int, default=threads)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--out", type=Path, default=results)
    return found


def one_line(
    options: argparse.ArgumentParser,
    words: Sequence[str] | None,
    run: Callable[[argparse.Namespace], Line],
    table: Callable[[Line], str],
) -> None:
    """Measure, append the JSON line where the test part judged, print the table."""
    given = options.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    line = run(given)
    if given.part == "test":
        environment.append(given.out, line)
    print(table(line))
