"""From samples to what may be said: paired intervals, the best peer of a cell, the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LIMIT = 1.02  # the lower end of our ratio to the best peer may not lie above this


def paired(ours: np.ndarray, theirs: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float, float]:
    """(low, value, high) of the difference in accuracy, in points of 100, on the same items.

    `ours`, `theirs`: booleans, right or wrong item by item. The bootstrap over items is drawn as counts of the three
    differences an item can have (-1, 0, +1), which is the same distribution.
    """
    difference = ours.astype(int) - theirs.astype(int)
    items = len(difference)
    shares = np.array([np.mean(difference == value) for value in (-1, 0, 1)])
    counts = np.random.default_rng(seed).multinomial(items, shares / shares.sum(), size=draws)
    low, high = np.percentile((counts[:, 2] - counts[:, 0]) * 100.0 / items, [2.5, 97.5])
    return round(float(low), 3), round(float(difference.mean() * 100), 3), round(float(high), 3)


def verdict(cell: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Whether one of our cells keeps both promises of the benchmark: "met", or which one it misses."""
    missed = []
    if cell["ratio"][0] > LIMIT:
        missed.append("time")
    if row["to_most_accurate_peer"][2] < 0:
        missed.append("accuracy")
    return "misses " + " and ".join(missed) if missed else "met"


def table(line: Mapping[str, Any]) -> str:
    """The line of one model as a readable table."""
    batches = [str(batch) for batch in line["batches"]]
    head = ["", "accuracy %", "to the best [95 %]", *_flat([f"ms at {b}", "ratio [95 %]"] for b in batches)]
    rows = [[*head, "seconds", "kB"]]
    for name, row in line["rows"].items():
        rows.append([row["title"], *_accuracy(row), *_flat(_cell(line, b, name) for b in batches), *_cost(row)])
    rows.append(["A/A control", "", "", *_flat(_control(line["cells"][b]) for b in batches), "", ""])
    load = f"{line['load_before'][0]:.2f} before, {line['load_after'][0]:.2f} after"
    notes = [
        f"{line['model']}: {line['items']} test items, {line['threads']} threads, load {load}, commit {line['commit']}"
    ]
    notes += [f"  batch {b}: best peer {line['cells'][b]['best_peer']}; " + _promises(line, b) for b in batches]
    if line["capped"]["contenders"]:
        notes.append(f"  * {line['capped']['rounds']} rounds instead of {line['rounds']}: far behind the best")
    return "\n".join([*_aligned(rows), *notes])


def _flat(pairs: Iterable[list[str]]) -> list[str]:
    return [text for pair in pairs for text in pair]


def _accuracy(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return ["-", row["error"][:60]]
    low, value, high = row["to_most_accurate_peer"]
    return [f"{100 * row['accuracy']:.2f}", f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"]


def _cell(line: Mapping[str, Any], batch: str, name: str) -> list[str]:
    found = line["cells"][batch]["times"].get(name)
    if found is None:
        return ["", ""]
    low, value, high = found["ratio"]
    star = "*" if name in line["capped"]["contenders"].get(batch, ()) else ""
    return [f"{1000 * found['seconds']:.3f}{star}", f"{value:.2f} [{low:.2f}, {high:.2f}]"]


def _control(cell: Mapping[str, Any]) -> list[str]:
    low, value, high = cell["control"]["ratio"]
    return [f"{1000 * cell['control']['seconds']:.3f}", f"{value:.2f} [{low:.2f}, {high:.2f}]"]


def _cost(row: Mapping[str, Any]) -> list[str]:
    return ["", ""] if "error" in row else [f"{row['seconds']:.1f}", f"{row['bytes'] / 1000:.0f}"]


def _promises(line: Mapping[str, Any], batch: str) -> str:
    found = line["cells"][batch]["promises"]
    said = [f"{line['rows'][name]['title']} {said}" for name, said in found.items()]
    if (alone := int8_alone(line["cells"][batch])) is not None:
        said.append(f"our int8 alone ({line['rows'][alone]['title']}) {found[alone]}")
    return ", ".join(said) or "ours not run"


def int8_alone(cell: Mapping[str, Any]) -> str | None:
    """The faster of our int8 files in a cell: what `--target onnxruntime:int8,openvino:int8` would choose."""
    ours = [name for name in cell["times"] if name.startswith("tersor_int8_")]
    return min(ours, key=lambda name: cell["times"][name]["seconds"], default=None)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
