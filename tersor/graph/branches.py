"""Residual branches: what is added to a stream that goes on without it.

A branch is everything that is computed for one side of an addition only, and ends in a matrix. With that matrix zero, the
branch adds nothing, and leaving it out gives the same outputs: whole blocks and layers are removed in this way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from tersor.graph.model import Model
from tersor.graph.operators import aten, matrix_arguments

_KEEP_ZERO = (
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.dropout.default, aten.to.dtype),
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim),
    *(aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.roll.default, aten.slice.Tensor),
    *(aten.relu.default, aten.gelu.default, aten.silu.default, aten.tanh.default, aten.hardtanh.default),
)


@dataclass(frozen=True)
class Branch:
    """`name` is that of the matrix it ends in, `matrices` are all that go with it; nodes by name."""

    name: str
    matrices: tuple[str, ...]
    addition: str
    trunk: str


def branches(model: Model) -> tuple[Branch, ...]:
    """The branches of `model` that can be left out, in execution order. One that ends in a shared weight cannot."""
    found = []
    known = _Known.of(model)
    for node in model.graph.nodes:
        if node.target is aten.add.Tensor and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
            for end, trunk in (node.args[::-1], node.args):
                branch = _branch(known, node, end, trunk)
                if branch is not None:
                    found.append(branch)
                    break  # of two, the second is as good as the first, and both together are nothing
    return tuple(found)


def without(model: Model, names: Collection[str]) -> Model:
    """A model that leaves out the branches called `names`: the same function where their last matrices are zero."""
    gone = [branch for branch in branches(model) if branch.name in names]
    model = model.copy()
    nodes = {node.name: node for node in model.graph.nodes}
    for branch in gone:
        nodes[branch.addition].replace_all_uses_with(nodes[branch.trunk])
        nodes[branch.addition] = nodes[branch.trunk]  # it may be the trunk of a later one
    # The graph is functional; torch would keep attention, which may draw dropout.
    model.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    model.module.delete_all_unused_submodules()
    model.module.recompile()
    return model


@dataclass(frozen=True)
class _Known:
    """What every branch is asked about, found in one pass: places in the order of execution; what depends on the inputs of the
    network; how many nodes read each parameter, by name, under whatever name they know it."""

    place: Mapping[fx.Node, int]
    reached: frozenset[fx.Node]
    readers: Mapping[str, int]

    @staticmethod
    def of(model: Model) -> _Known:
        reached: set[fx.Node] = set()
        pointers: dict[str, int | None] = {}
        counts: Counter[int | None] = Counter()
        for node in model.graph.nodes:
            if node.op == "placeholder" or not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
            if node.op == "get_attr":
                pointers[str(node.target)] = _pointer(model, node)
                counts[_pointer(model, node)] += len(node.users)
        place = {node: i for i, node in enumerate(model.graph.nodes)}
        return _Known(place, frozenset(reached), {name: counts[pointer] for name, pointer in pointers.items()})


def _branch(known: _Known, addition: fx.Node, end: fx.Node, trunk: fx.Node) -> Branch | None:
    last = _last_matrix(end)
    if last is None or end is trunk or _shape(end) != _shape(trunk) or known.readers[str(last.args[1].target)] > 1:
        return None
    inside = _only_for(addition, end)
    if last not in inside or trunk in inside or trunk not in known.reached:
        return None
    names = [_name(node) for node in sorted(inside, key=known.place.__getitem__) if matrix_arguments(node) is not None]
    return Branch(_name(last), tuple(names), addition.name, trunk.name)


def _last_matrix(node: fx.Node) -> fx.Node | None:
    """The matrix that `node` is, or is zero with."""
    while matrix_arguments(node) is None:
        if node.target is aten.mul.Tensor:
            scaled = [a for a in node.all_input_nodes if a.op != "get_attr"]
        else:
            scaled = node.all_input_nodes[:1] if node.target in _KEEP_ZERO else []
        if len(scaled) != 1:
            return None
        node = scaled[0]
    return node


def _only_for(addition: fx.Node, end: fx.Node) -> set[fx.Node]:
    """What nobody would compute if `end` were not added."""
    if set(end.users) != {addition}:
        return set()
    inside: set[fx.Node] = set()
    others: dict[fx.Node, int] = {}  # how many of its readers are not known to be inside; each node is visited once
    waiting = [end]
    while waiting:
        node = waiting.pop()
        inside.add(node)
        for source in node.all_input_nodes:
            others[source] = others.get(source, len(source.users)) - 1
            trunk = addition in source.users
            if others[source] == 0 and source.op == "call_function" and not trunk:
                waiting.append(source)
    return inside


def _pointer(model: Model, node: fx.Node) -> int | None:
    value = model.tensor(str(node.target))
    return value.data_ptr() if hasattr(value, "data_ptr") else None


def _name(matrix: fx.Node) -> str:
    found = matrix_arguments(matrix)
    assert found is not None
    return str(found[0].target).removesuffix(".weight")


def _shape(node: fx.Node) -> list[str] | None:
    value = node.meta.get("val")
    return None if value is None else [str(size) for size in value.shape]
