"""What `distil` made, as a table."""

from __future__ import annotations

from pathlib import Path

from tersor.cli.console import say, table
from tersor.cli.left_alone import show_left_alone
from tersor.cli.training import course
from tersor.distilling import Distilled
from tersor.measuring.metrics import Score
from tersor.units import count, number


def show(found: Distilled, out: Path | None) -> None:
    """Teacher, student as it came, and student as it is now."""
    rows = [
        (found.metric, *(_score(score) for score in (found.before, found.untrained, found.after))),
        ("multiply-adds", count(found.macs[0]), count(found.macs[1]), count(found.macs[1])),
        ("parameters", count(found.parameters[0]), count(found.parameters[1]), count(found.parameters[1])),
    ]
    heads = ("", f"teacher {found.teacher}", "student before training", "student")
    table(found.name, heads, rows, numbers=(1, 2, 3))
    print(course(found.trained, found.drop.relative))
    show_left_alone(found.left_alone)
    print(f"From teacher to student: {found.drop.text}")
    say(output.words(found.metric) for output in found.outputs)
    if out is not None:
        print(f"\nwritten   {out}")
        if out.suffix == ".pt2":
            print(f"next      tersor compress {out} --data ...   (finds the fastest runtime and precision for it)")


def _score(score: Score) -> str:
    parts = score if isinstance(score, dict) else {"": score}
    return ", ".join(f"{name} {number(value)}".strip() for name, value in parts.items())
