"""What `prune` made, as tables."""

from __future__ import annotations

import math
from pathlib import Path

from tersor.cli.console import say, table
from tersor.cli.left_alone import show_left_alone
from tersor.cli.training import course
from tersor.pruned import Pruned, Size
from tersor.units import count, points, signed


def show(found: Pruned, out: Path | None) -> None:
    """The state after each step, what was removed where, and the score before and after."""
    rows = [("original", *_size(found.original, found.original), "")]
    rows += [
        (f"step {i}", *_size(step.size, found.original), _lost(step.lost) + ("" if step.kept else " (over budget)"))
        for i, step in enumerate(found.steps, 1)
    ]
    unit = "%" if found.drop.relative else "points"
    head = ("", "multiply-adds", "fewer", "weights", "nonzero, of original", f"drop on held-out data, {unit}")
    table(found.name, head, rows, numbers=(1, 2, 3, 4, 5))
    if found.widths:
        narrowed = [(name, str(before), str(left)) for name, (left, before) in found.widths.items()]
        table("Pruned axes", ("axis", "blocks before", "blocks now"), narrowed, numbers=(1, 2))
    if found.densities:
        table("Sparse layers", ("layer", "nonzero"), [(n, points(d)) for n, d in found.densities.items()], numbers=(1,))
    if found.dropped:
        print(f"Removed branches: {', '.join(found.dropped)}")
    for step, history in enumerate(found.trained, 1):
        print(f"Step {step}: {course(history, found.drop.relative)}")
    show_left_alone(found.left_alone)
    print(found.drop.text)
    say(output.words(found.metric) for output in found.outputs)
    if out is not None:
        print(f"\nwritten   {out}")
        if found.densities and not found.widths and not found.dropped:
            print("          (zeros are stored as other values are, and these runtimes take as long for them)")
        elif out.suffix == ".pt2":
            print(f"next      tersor compress {out} --data ...   (finds the fastest runtime and precision for it)")


def _size(size: Size, original: Size) -> tuple[str, str, str, str]:
    fewer = f"{original.macs / size.macs:.2f}x" if 0 < size.macs < original.macs else ""
    return count(size.macs), fewer, count(size.weights), points(size.nonzero / original.weights)


def _lost(amount: float) -> str:
    """A drop, in points or %; of a score of zero there is no percentage."""
    return signed(100 * amount) if math.isfinite(amount) else "more than 0" if amount > 0 else "less than 0"
