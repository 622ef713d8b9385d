"""Move scale from a float activation into the columns of the linear layers that read it: SmoothQuant.

In transformers a few channels of what a norm or a GELU gives are a hundred times as large as the others; one grid for all of
them leaves the others a handful of codes. Each channel divided by a power of two, and the column times it, is the same
function: no float is rounded by it. The division goes into the norm where nobody else reads it, else it is an operator of its
own, which costs a pass over the activation. Only where floats arrive: what integer kernels hand on as codes is left alone
(between those, `equalise` moves scale for nothing). Source: Xiao et al. 2022 (arXiv:2211.10438).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from tersor import deadline
from tersor.graph.codes import given_as_codes
from tersor.graph.memory import cut, together
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.maths.grid import Integers, PerChannel
from tersor.maths.histogram import Histogram
from tersor.maths.ranges import mse
from tersor.maths.smoothing import best_scale
from tersor.profile import Facts, shelved
from tersor.site import Site, sites
from tersor.target import Grid

CLEARLY = 0.8  # of the error that stays; above that it is not worth an operator
POSITIONS = 1024  # that candidates are compared on
BALANCES = (0.5, 0.65, 0.8, 0.95)


def scales(model: Model, batches: Iterable[Sequence[Tensor]], weights: int = 8, reads: int = 8) -> dict[str, Tensor]:
    """By what to divide activations, (c,) by node name, where their readers, in `weights` bits a row and `reads` bits of what
    they read, then lose clearly less on the flat input `batches`.

    Cost: a pass over as many items as give POSITIONS positions everywhere, and a few roundings of every weight.
    """
    found = {site.activation: site for site in sites(model) if _eligible(model, site)}
    seen: dict[str, list[Tensor]] = {name: [] for name in found}

    def visit(node: fx.Node, value: Any) -> Any:
        if node.name in found:
            rows = value.reshape(-1, value.shape[-1])
            seen[node.name].append(rows[:: -(-len(rows) // POSITIONS)].float())
        return value

    size = together(model)
    for piece in (piece for batch in batches for piece in cut(batch, size)):
        if all(sum(map(len, rows)) >= POSITIONS for rows in seen.values()):
            break
        model.interpret(piece, visit)
    kind, read = Integers(weights, True, PerChannel()), partial(_read, bits=reads)
    chosen = {}
    for name, site in found.items():
        deadline.check()
        x = torch.cat(seen.pop(name))
        w = torch.cat([model.tensor(m.weight).detach().float() for m in site.matrices])
        scale = best_scale(x[:: -(-len(x) // POSITIONS)], w, kind, read, CLEARLY, balances=BALANCES)
        if scale is not None:
            chosen[name] = scale
    return chosen


def smooth(
    model: Model, scales: Mapping[str, Tensor], facts: Mapping[str, Facts] = {}
) -> tuple[Model, Mapping[str, Facts]]:
    """The same function with the activations of `scales` divided, and the facts of its matrices; `model` itself without any."""
    if not scales:
        return model, facts
    model, after = model.copy(), shelved(facts)
    nodes = {node.name: node for node in model.graph.nodes}
    for site in sites(model):
        scale = scales.get(site.activation)
        if scale is None:
            continue
        readers = [nodes[m.node] for m in site.matrices]
        _divide(model, nodes[site.activation], readers, scale)
        for matrix in site.matrices:
            model.assign(matrix.weight, model.tensor(matrix.weight) * scale)
            if matrix.name in after:
                after[matrix.name] = after[matrix.name].with_inputs_divided(scale.double()[None, None])
    model.graph.lint()
    model.module.recompile()
    return model, after


def _read(x: Tensor, bits: int) -> Tensor:
    """On one grid for all of it."""
    seen = Histogram()
    seen.update(x)
    return Grid(*mse(seen.counts, seen.edges, seen.low, seen.high, bits), 0, 2**bits - 1).round(x)


def _eligible(model: Model, site: Site) -> bool:
    """Linear layers alone, each with a weight of its own, of floats that no integer kernel gives."""
    if any(m.convolution is not None for m in site.matrices):
        return False
    node = next(n for n in model.graph.nodes if n.name == site.activation)
    if node.op != "call_function" or given_as_codes(node):
        return False
    readers: dict[int, int] = {}
    for each in model.graph.nodes:
        if each.op == "get_attr" and isinstance(tensor := model.tensor(str(each.target)), Tensor):
            readers[tensor.data_ptr()] = readers.get(tensor.data_ptr(), 0) + len(each.users)
    return all(readers[model.tensor(m.weight).data_ptr()] == 1 for m in site.matrices)


def _divide(model: Model, node: fx.Node, readers: Sequence[fx.Node], scale: Tensor) -> None:
    """Divide what `readers` see of `node` by `scale`: in the norm that gives it alone to them, else by a product."""
    own = [a for a in node.args[2:4] if isinstance(a, fx.Node)] if node.target is aten.layer_norm.default else []
    if own and set(node.users) == set(readers) and all(a.op == "get_attr" and len(a.users) == 1 for a in own):
        for parameter in own:
            model.assign(str(parameter.target), model.tensor(str(parameter.target)) / scale)
        return
    name = f"{node.name}_smoothing"
    model.module.register_buffer(name, 1 / scale)
    with model.graph.inserting_after(node):
        factor = model.graph.get_attr(name)
    factor.meta["val"] = model.tensor(name)
    with model.graph.inserting_after(factor):
        divided = model.graph.call_function(aten.mul.Tensor, (node, factor))
    divided.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, divided)
