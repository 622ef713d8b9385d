"""Bags of embeddings, as long as one another, become a look-up and a sum, mean or maximum while a model is captured.

torch reads a table of bags `ids`, (bags, n), as one row of ids and the places where each bag begins. Only that form has a fixed
number of ids a bag; bags of other lengths stay what they are.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from tersor.graph.arguments import bound
from tersor.graph.emit import emit
from tersor.graph.operators import aten

_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_SUM, _MEAN, _MAX = range(3)


def unpack_bags(module: fx.GraphModule) -> None:
    """Write, in place, every bag of a fixed number of ids as `aten.embedding` and a reduction. The same is computed."""
    for node in list(module.graph.nodes):
        if node.target not in _BAGS:
            continue
        a = bound(node)
        each, padding = _length(a["offsets"]), a.get("padding_idx")
        readers = list(node.users)
        if each is None or any(reader.args[1] != 0 for reader in readers) or a["include_last_offset"]:
            continue
        if a["mode"] == _MAX and padding is not None:
            continue
        value = _reduced(node, a, each, padding)
        for reader in readers:
            reader.replace_all_uses_with(value)
            module.graph.erase_node(reader)
        module.graph.erase_node(node)


def _length(offsets: Any) -> int | None:
    """How many ids each bag has, where the bags begin at 0, n, 2 n, ..."""
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    start, step = offsets.args[0], bound(offsets)["step"]
    return step if start == 0 and isinstance(step, int) and step > 0 else None


def _reduced(node: fx.Node, a: dict[str, Any], each: int, padding: int | None) -> fx.Node:
    ids = emit(node, aten.reshape.default, a["indices"], [-1, each])
    rows = emit(node, aten.embedding.default, a["weight"], ids)
    if a["per_sample_weights"] is not None:
        factor = emit(node, aten.reshape.default, a["per_sample_weights"], [-1, each, 1])
        rows = emit(node, aten.mul.Tensor, rows, factor)
    if a["mode"] == _MAX:
        return emit(node, aten.amax.default, rows, [1])
    if padding is None:
        return emit(node, aten.mean.dim if a["mode"] == _MEAN else aten.sum.dim_IntList, rows, [1])
    counted = emit(node, aten.unsqueeze.default, emit(node, aten.ne.Scalar, ids, padding), -1)
    real = emit(node, aten.to.dtype, counted, a["weight"].meta["val"].dtype)
    total = emit(node, aten.sum.dim_IntList, emit(node, aten.mul.Tensor, rows, real), [1])
    if a["mode"] == _SUM:
        return total
    return emit(
        node, aten.div.Tensor, total, emit(node, aten.clamp.default, emit(node, aten.sum.dim_IntList, real, [1]), 1)
    )
