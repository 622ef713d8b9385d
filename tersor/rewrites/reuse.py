"""The layers in which a student begins as its teacher does, with the teacher's values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from tersor.graph.model import Model


def reuse(student: Model, teacher: Model) -> tuple[Model, tuple[str, ...]]:
    """A student that computes from the inputs on, for as long as both do the same with parameters of the same shapes, what
    the teacher computes; and the names of the parameters that it took. Both are left alone."""
    student = student.copy()
    partners: dict[fx.Node, fx.Node] = {}
    taken: list[str] = []
    inputs = iter([node for node in teacher.graph.nodes if node.op == "placeholder"])
    for node in student.graph.nodes:
        if node.op == "placeholder":
            partner = next(inputs, None)
        else:
            found = (other for other in _candidates(node, partners) if _alike(student, node, teacher, other, partners))
            partner = next(found, None)
        if partner is None:
            continue
        partners[node] = partner
        for ours, its in zip(_leaves(node), _leaves(partner), strict=True):
            if isinstance(ours, fx.Node) and ours.op == "get_attr" and str(ours.target) not in taken:
                student.assign(str(ours.target), teacher.tensor(str(its.target)))
                taken.append(str(ours.target))
    return student, tuple(taken)


def _candidates(node: fx.Node, partners: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """Nodes of the teacher that read the same, in execution order, and are nobody's partner yet."""
    known = [partners[each] for each in node.all_input_nodes if each in partners]
    if node.op == "call_function" and known:
        yield from (other for other in known[0].users if other.target is node.target and other not in partners.values())


def _alike(student: Model, node: fx.Node, teacher: Model, other: fx.Node, partners: dict[fx.Node, fx.Node]) -> bool:
    """Whether both do the same to partners, with constants that are equal and parameters of equal shapes."""

    def same(ours: Any, its: Any) -> bool:
        if isinstance(ours, fx.Node) and isinstance(its, fx.Node):
            if ours.op == its.op == "get_attr":
                return student.tensor(str(ours.target)).shape == teacher.tensor(str(its.target)).shape
            return partners.get(ours) is its
        return type(ours) is type(its) and bool(ours == its)

    a, b = _leaves(node), _leaves(other)
    return len(a) == len(b) and all(same(ours, its) for ours, its in zip(a, b, strict=True))


def _leaves(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))
