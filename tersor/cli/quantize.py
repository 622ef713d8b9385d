"""What `quantize` made, as a table."""

from __future__ import annotations

from pathlib import Path

from tersor.cli.console import table
from tersor.quantising import Quantized
from tersor.units import count


def show(found: Quantized, out: Path | None) -> None:
    """Bits and bytes, the training where there was one, and the score before and after."""
    bits = sorted(set(found.weights.values()), reverse=True)
    rows = [
        ("weights", "32 bits", f"{', '.join(map(str, bits))} bits"),
        ("activations", "32 bits", f"{found.activations} bits"),
        ("bytes", *map(count, found.bytes)),
    ]
    table(found.name, ("", "original", "quantised"), rows, numbers=(1, 2))
    if found.trained is not None and found.trained.losses:
        (_, first), (_, last) = found.trained.losses[0], found.trained.losses[-1]
        print(f"trained {found.trained.steps} steps in {found.trained.seconds:.0f} s: loss {first:.4g} -> {last:.4g}")
    print(found.drop.text)
    if out is not None:
        print(f"\narchive   {out}   (computes in float; `tersor compress` makes int8 files that are fast)")
