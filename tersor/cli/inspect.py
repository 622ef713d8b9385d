"""What `inspect` found, as tables."""

from __future__ import annotations

from tersor.cli.console import table
from tersor.cli.described import show_data
from tersor.cli.left_alone import show_left_alone
from tersor.inspection import Axis, Inspection
from tersor.units import count, several


def show(found: Inspection) -> None:
    """The layers, then the axes that can be pruned, then those that cannot, and why; last what is in no layer."""
    inputs = ", ".join(f"{i.name} ({', '.join(['batch', *map(str, i.shape)])}) {i.type}" for i in found.inputs)
    print(f"{found.model}: {count(found.parameters)} parameters, {count(found.macs)} multiply-adds per item")
    print(f"inputs   {inputs}\noutputs  {', '.join(found.outputs)}\n")
    table(
        "Layers",
        ("layer", "kind", "weight", "parameters", "multiply-adds", "share"),
        [
            (
                layer.name,
                layer.kind,
                " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                _share(layer.macs, found.macs),
            )
            for layer in found.layers
        ],
        numbers=(3, 4, 5),
    )
    if found.products:
        told = ", ".join(f"{each.operator.removeprefix('aten.')} {count(each.macs)}" for each in found.products)
        print(f"Matrix products outside layers, in multiply-adds per item: {told}. Budgets do not count them.\n")
    prunable = [axis for axis in found.axes if axis.refused is None]
    refused = [axis for axis in found.axes if axis.refused is not None]
    table(
        f"Prunable: {several(len(prunable), 'axis', 'axes')}, {several(sum(a.blocks for a in prunable), 'block')}",
        ("axis", "kind", "blocks", "weights per block", "produced by", "read by", "note"),
        [
            (a.name, a.kind, str(a.blocks), f"{a.parameters:.0f}", _few(a.producers), _few(a.readers), _note(a))
            for a in prunable
        ],
        numbers=(2, 3),
    )
    if refused:
        reasons = [(a.name, str(a.blocks), (a.refused or "").removeprefix("not prunable: ")) for a in refused]
        table(
            f"Not prunable: {several(len(refused), 'axis', 'axes')}", ("axis", "blocks", "why"), reasons, numbers=(1,)
        )
    show_left_alone(found.left_alone)
    if found.data is not None:
        show_data(found.data)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _few(found: tuple[str, ...]) -> str:
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")


def _note(axis: Axis) -> str:
    if not axis.normalised:
        return ""
    return f"{'' if axis.budgeted else 'not pruned for a budget: '}its width matters to {_few(axis.normalised)}"
