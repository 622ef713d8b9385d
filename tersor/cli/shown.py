"""Reports and races as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersor.benchmarking import names
from tersor.cli.console import say, seen, table
from tersor.cli.left_alone import show_left_alone
from tersor.measuring.clock import Race
from tersor.report import Report, faster
from tersor.units import several, spread


def show_report(report: Report, folder: Path | None) -> None:
    """The before/after table, what was lost, what ran in which precision, and where the report lies."""
    heads = report.heads()
    table("", heads, report.rows(), numbers=tuple(range(1, len(heads) - 1)))
    show_left_alone(report.left_alone)
    cautions = [f"Warning: {warning}" for warning in report.warnings if not seen(warning)]
    notes = [note for note in report.notes if not seen(note)]
    say((report.drop, report.shares(), report.executed(), *cautions, *notes))
    if folder is not None:
        print(f"\nartifact  {folder}\nreport    {folder / 'report.html'}\ncheck     tersor verify {folder}")


def show_race(race: Race, folders: Sequence[Path], batch: int) -> None:
    """Median time of each folder, and its ratio to the first."""
    shown = names(folders)
    times = [(name, race.seconds(name)) for name in shown]
    rows = [(name, spread(t.low, t.value, t.high), _against(race, name, shown[0])) for name, t in times]
    table(
        f"batch of {batch}, {several(race.threads, 'thread')}, {several(race.rounds, 'round')}",
        ("", "median time per batch", "compared with the first"),
        rows,
        (1,),
    )
    noise = race.noise()
    if noise is not None:
        print(
            f"Noise, the first timed against itself: {noise.value:.3f} [{noise.low:.3f}, {noise.high:.3f}]; load average "
            f"{race.load[1]:.1f}."
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
    return faster(race.ratio(name, first), race.verdict(name, first))
