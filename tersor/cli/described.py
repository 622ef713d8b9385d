"""How data was read, as tables."""

from __future__ import annotations

from tersor.cli.console import table
from tersor.inputs.described import Column, Described
from tersor.units import several


def show_data(found: Described) -> None:
    """Items, inputs, labels, and three of the items."""
    least, most = found.sizes
    each = f"{least}" if least == most else f"{least} to {most}"
    print(
        f"{found.name}: read as {found.how}; {several(found.items, 'item')} in "
        f"{several(found.batches, 'batch', 'batches')} of {each}"
    )
    rows = [("input", *_cells(column)) for column in found.inputs] + [
        ("label", *_cells(column)) for column in found.labels
    ]
    table("Data", ("", "name", "shape per item", "type", "min", "max", "values"), rows, numbers=(4, 5))
    names = [*(column.name for column in found.inputs), *(column.name or "label" for column in found.labels)]
    items = [(str(item.number), *item.inputs.values(), *item.labels.values()) for item in found.examples]
    table("Examples", ("item", *names), items, numbers=(0,))
    if found.problem is not None:
        print(f"Other commands will refuse this data: {found.problem}")


def _cells(column: Column) -> tuple[str, ...]:
    shape = "varies" if column.shape is None else f"({', '.join(map(str, column.shape))})" if column.shape else "scalar"
    said = [f"{column.strange} NaN or Inf"] if column.strange else []
    if column.distinct is not None:
        more = ", ..." if column.distinct > len(column.values) else ""
        said.append(f"{column.distinct} distinct: {', '.join(column.values)}{more}")
    ends = ["" if end is None else f"{end:.4g}" for end in (column.low, column.high)]
    return column.name, shape, column.type, *ends, "; ".join(said)
