"""Which operator it is that a runtime cannot run, and where the user wrote it.

A runtime that refuses a file names the node at which it noticed, or none at all. So the file is cut short: the first node
with which the part up to it is refused, or gets another shape than it should have, is the one to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from tersor.hub.export import Exported

Shape = tuple[int | None, ...] | None
Read = Callable[[ir.Model], Sequence[Shape]]
"""What a runtime makes of a model: the shapes of its outputs, None for what it leaves open. Raises where it refuses."""


def blamed(exported: Exported, read: Read) -> str:
    """The operator and the user's line, such as "DFT at model.py:12"; "" where no part is refused. Cost: log2(nodes) reads."""
    nodes = list(exported.onnx.graph)
    good, bad = 0, len(nodes) + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _sound(exported, middle, read) else (good, middle)
    if bad > len(nodes):
        return ""
    first = bad - 1
    while first and not any(v.name in exported.values_known for v in nodes[first - 1].outputs):
        first -= 1  # no part can end at a node of unknown outputs (a loop, a sequence): it is tried with the next
    places = [exported.places.get(str(node.name), "") for node in nodes[:bad]]
    place = places[-1] or next((place for place in reversed(places) if place), "")
    return f"{nodes[first].op_type} at {place}" if place else nodes[first].op_type


def _sound(exported: Exported, count: int, read: Read) -> bool:
    """Whether a runtime takes the first `count` nodes, and gives their values the shapes that they have."""
    short = exported.onnx.clone()
    nodes = list(short.graph)
    values = [v for node in nodes[:count] for v in node.outputs if v.name in exported.values_known]
    for value in values:
        value.type, value.shape = exported.values_known[str(value.name)]
    if not values:
        return True
    short.graph.outputs[:] = values
    short.graph.remove(nodes[count:], safe=False)
    try:
        seen = read(short)
    except Exception:  # whatever a runtime raises for what it does not take
        return False
    wanted = [exported.values_known[str(value.name)][1] for value in values]
    return all(_agree(a, b) for a, b in zip(seen, wanted, strict=True))


def _agree(seen: Shape, wanted: ir.Shape) -> bool:
    if seen is None:
        return True
    pairs = zip(seen, wanted, strict=False)
    return len(seen) == len(wanted) and all(a is None or not isinstance(b, int) or a == b for a, b in pairs)
