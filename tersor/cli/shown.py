"""Reports and races as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersor.benchmarking import names
from tersor.cli.console import table
from tersor.measuring.clock import Race
from tersor.report import Interval, Report
from tersor.units import ms


def show_report(report: Report, folder: Path | None) -> None:
    """The before/after table, what was lost, what ran in which precision, and where the report lies."""
    rows = [row for row in report.rows() if row[1] or row[2]]
    table("", ("", report.before.name, report.after.name, ""), rows, numbers=(1, 2))
    said = (report.drop, report.executed(), *(f"Warning: {w}" for w in report.warnings), *report.notes)
    for sentence in filter(None, said):
        print(sentence)
    if folder is not None:
        print(f"\nartifact  {folder}\nreport    {folder / 'report.html'}\ncheck it  tersor verify {folder}")


def show_race(race: Race, folders: Sequence[Path], batch: int) -> None:
    """Median time of each folder, and its ratio to the first."""
    shown = names(folders)
    rows = [(name, _spread(race.seconds(name)), _against(race, name, shown[0])) for name in shown]
    table(
        f"batch of {batch}, {race.threads} threads, {race.rounds} rounds",
        ("", "median", "against the first"),
        rows,
        (1,),
    )
    noise = race.noise()
    if noise is not None:
        print(
            f"The first against itself: {noise.value:.3f} [{noise.low:.3f}, {noise.high:.3f}]; load {race.load[1]:.1f}."
        )


def race_record(race: Race, folders: Sequence[Path], batch: int) -> dict[str, Any]:
    """A race as plain data."""
    shown = names(folders)
    entries = [
        {
            "folder": folder,
            "seconds": race.seconds(name),
            "ratio": race.ratio(name, shown[0]),
            "verdict": race.verdict(name, shown[0]) if name != shown[0] else "",
            "memory": race.memory.get(name),
        }
        for folder, name in zip(folders, shown, strict=True)
    ]
    return {
        "batch": batch,
        "threads": race.threads,
        "rounds": race.rounds,
        "noise": race.noise(),
        "load": race.load,
        "artifacts": entries,
    }


def _against(race: Race, name: str, first: str) -> str:
    if name == first:
        return ""
    ratio = race.ratio(name, first)
    verdict = race.verdict(name, first)
    if verdict == "no difference":
        return f"no measurable difference [{ratio.low:.3f}, {ratio.high:.3f}]"
    factor = 1 / ratio.value if ratio.value < 1 else ratio.value
    return f"{factor:.2f}x {verdict} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _spread(seconds: Interval) -> str:
    return f"{ms(seconds.value)} [{1e3 * seconds.low:.3g}, {1e3 * seconds.high:.3g}]"
