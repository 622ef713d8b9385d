"""What `sensitivity` found, as tables."""

from __future__ import annotations

from tersor.cli.console import table
from tersor.sensed import GRANULARITIES, Sensitivity
from tersor.units import number, several


def show(found: Sensitivity) -> None:
    """One table a granularity, the most sensitive place first; cells are what the metric loses."""
    before = ", ".join(f"{entry} {number(value)}".strip() for entry, value in found.before.items())
    print(
        f"{found.model}: {found.metric} {before} on {several(found.items, 'held-out item')}. The tables show how much worse it "
        "gets when one layer alone is changed.\n"
    )
    for granularity in GRANULARITIES:
        places = found.places(granularity)
        if not places:
            continue
        amounts = sorted({p.amount for _, points in places for p in points}, reverse=granularity == "bits")
        rows = []
        for place, points in places:
            lost = {p.amount: number(found.loss(p)) for p in points}
            rows.append((place, *(lost.get(amount, "") for amount in amounts)))
        title, heads = _heads(granularity, amounts)
        table(title, ("layer", *heads), rows, numbers=tuple(range(1, len(amounts) + 1)))


def _heads(granularity: str, amounts: list[float]) -> tuple[str, list[str]]:
    if granularity == "bits":
        return "Bits per weight", [f"{amount:.0f} bits" for amount in amounts]
    return f"{granularity.capitalize()} removed", [f"{100 * amount:.3g} %" for amount in amounts]
