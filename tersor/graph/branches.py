"""Residual branches: what is added to a stream that goes on without it.

A branch is everything that is computed for one side of an addition only, and ends in a matrix. With that matrix zero, the
branch adds nothing, and leaving it out gives the same outputs: whole blocks and layers are removed in this way.
"""

from __future__ import annotations

from collections.abc import Collection
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
    for node in model.graph.nodes:
        if node.target is aten.add.Tensor and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
            for end, trunk in (node.args[::-1], node.args):
                branch = _branch(model, node, end, trunk)
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


def _branch(model: Model, addition: fx.Node, end: fx.Node, trunk: fx.Node) -> Branch | None:
    last = _last_matrix(end)
    if last is None or end is trunk or _shape(end) != _shape(trunk) or _shared(model, last):
        return None
    inside = _only_for(addition, end)
    if last not in inside or trunk in inside or not _sees_input(trunk):
        return None
    names = [_name(node) for node in model.graph.nodes if node in inside and matrix_arguments(node) is not None]
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
    inside: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and all(user in inside or user is addition for user in node.users):
            if node is not end and addition in node.users:
                continue  # it is the trunk
            inside.add(node)
            waiting += node.all_input_nodes
    return inside


def _sees_input(node: fx.Node) -> bool:
    seen, waiting = set(), [node]
    while waiting:
        at = waiting.pop()
        if at.op == "placeholder":
            return True
        if at not in seen:
            seen.add(at)
            waiting += at.all_input_nodes
    return False


def _shared(model: Model, matrix: fx.Node) -> bool:
    read = matrix.args[1]
    assert isinstance(read, fx.Node)
    alike = [n for n in model.graph.nodes if n.op == "get_attr" and _pointer(model, n) == _pointer(model, read)]
    return sum(len(n.users) for n in alike) > 1


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
