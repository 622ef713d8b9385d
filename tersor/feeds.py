"""Through which grid each activation is read: none, one fixed on calibration data, or one made at run time.

A static grid clips what calibration did not see and costs nothing at run time, since integer kernels pass codes on to one
another; it stands only where they do. A dynamic one always fits, and costs two passes over the activation; the layer gives
floats. It pays where large matrices stand between operators that are float anyway (norms, softmax, GELU): linear layers of
transformers and MLPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from torch import Tensor

from tersor.graph.codes import leaving, on_grids
from tersor.graph.model import Model
from tersor.maths.ranges import entropy, minmax, mse, percentile, robust
from tersor.profile import Range
from tersor.site import matrices, matrix_of, sites
from tersor.target import Dynamic, Grid

Feeds = Literal["none", "static", "dynamic"]
"""No grids; a static one wherever integer kernels read or hand on codes; a dynamic one for every linear layer and static ones
around convolutions."""
OfHistogram = Callable[[Tensor, Tensor, float, float, int], tuple[float, int]]


def _average(seen: Range, bits: int) -> tuple[float, int]:
    return minmax(seen.counts, seen.edges, *seen.usual, bits)


def _whole(of: OfHistogram, seen: Range, bits: int) -> tuple[float, int]:
    return of(seen.counts, seen.edges, seen.low, seen.high, bits)


RANGES: Mapping[str, Callable[[Range, int], tuple[float, int]]] = {
    "best": partial(_whole, robust),
    "minmax": partial(_whole, minmax),
    "average": _average,
    "percentile": partial(_whole, percentile),
    "mse": partial(_whole, mse),
    "entropy": partial(_whole, entropy),
}
"""(scale, zero) of an activation from what was seen of it, in so many bits. "average": the moving average of the extremes of
each item (Jacob et al. 2018, arXiv:1712.05877)."""


def feeds_of(model: Model, ranges: Mapping[str, Range], kind: Feeds, rule: str = "best") -> dict[str, Grid | Dynamic]:
    """The feeds of `model` by node name, with ranges by the `rule` of RANGES."""
    if kind == "none":
        return {}
    dynamic = _read_by_linears(model) if kind == "dynamic" else frozenset()
    static = _around_convolutions(model, ranges) if kind == "dynamic" else _on_grids(model)
    found: dict[str, Grid | Dynamic] = {}
    for name, seen in ranges.items():
        if name in dynamic:
            found[name] = Dynamic()
        elif name in static:
            found[name] = Grid(*RANGES[rule](seen, 8))
    return found


def _on_grids(model: Model) -> frozenset[str]:
    """Activations that integer kernels read, give or hand on."""
    return on_grids(model.graph, {m.node for m in matrices(model)})


def _read_by_linears(model: Model) -> frozenset[str]:
    """Activations that linear layers read, and no convolution."""
    return frozenset(s.activation for s in sites(model) if all(m.convolution is None for m in s.matrices))


def _around_convolutions(model: Model, ranges: Mapping[str, Range]) -> frozenset[str]:
    """Activations that a convolution reads or gives, and what is computed from these alone.

    Between linear layers with dynamic feeds all is float: a static grid there would cost accuracy and gain nothing.
    """
    found = {s.activation for s in sites(model) if any(m.convolution is not None for m in s.matrices)}
    leaves = leaving(model.graph)
    for node in (node for node in model.graph.nodes if node not in leaves):
        matrix = matrix_of(model, node)
        sources = [source.name for source in node.all_input_nodes if source.name in ranges]
        follows = bool(sources) and found.issuperset(sources)
        if follows if matrix is None else matrix.convolution is not None:
            found.add(node.name)
    return frozenset(found)
