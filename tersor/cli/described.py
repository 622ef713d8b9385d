"""How data was read, as tables."""

from __future__ import annotations

from tersor.cli.console import table
from tersor.inputs.described import Column, Described
from tersor.units import number


def show_data(found: Described) -> None:
    """Items, inputs, labels, and three of the items."""
    least, most = found.sizes
    each = f"{least}" if least == most else f"{least} to {most}"
    batches = "batch" if found.batches == 1 else "batches"
    print(f"{found.name}: read as {found.how}; {found.items} items in {found.batches} {batches} of {each}")
    rows = [("input", *_cells(column)) for column in found.inputs] + [
        ("label", *_cells(column)) for column in found.labels
    ]
    table("Data", ("", "name", "an item", "type", "least", "largest", "found"), rows, numbers=(4, 5))
    names = [*(column.name for column in found.inputs), *(column.name or "label" for column in found.labels)]
    items = [(str(item.number), *item.inputs.values(), *item.labels.values()) for item in found.examples]
    table("Three items", ("item", *names), items, numbers=(0,))
    if found.problem is not None:
        print(f"As data for a command it is refused: {found.problem}")


def _cells(column: Column) -> tuple[str, ...]:
    shape = (
        "differs" if column.shape is None else f"({', '.join(map(str, column.shape))})" if column.shape else "one value"
    )
    said = [f"{column.strange} NaN or Inf"] if column.strange else []
    if column.distinct is not None:
        more = ", ..." if column.distinct > len(column.values) else ""
        said.append(f"{column.distinct} different: {', '.join(column.values)}{more}")
    return column.name, shape, column.type, number(column.low), number(column.high), "; ".join(said)
