"""Places in a model where something can be decided: sites (what reads an activation) and groups (what lives together).

`sites(model)` finds the matrices; `groups(model)` (dependency analysis, `graph/`) finds the prunable axes.
Everything is named by the user's parameter names and by graph node names, and holds no tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from tersor.graph.arguments import operator_name
from tersor.graph.dependency import Dependency, Family, analyse
from tersor.graph.kinds import kinds
from tersor.graph.model import Model
from tersor.graph.operators import aten, matrix_arguments
from tersor.graph.recurrent import recurrences

TRIED = 64  # blocks of a group whose width counts in a softmax, at most, where all widths are to be tried


@dataclass(frozen=True)
class Convolution:
    """How a convolution unfolds its input into rows of `c = (channels / groups) * prod(kernel)` values."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """One matrix that reads an activation: the weight of a linear, convolution or embedding.

    `name` is the weight's name without `.weight`; `node` the graph node that applies it, `shape` the weight's shape.
    Viewed as `groups` matrices of (rows / groups, columns): see `maths.unfold`.
    """

    name: str
    node: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    convolution: Convolution | None = None

    @property
    def groups(self) -> int:
        return self.convolution.groups if self.convolution else 1

    @property
    def transposed(self) -> bool:
        return self.convolution is not None and self.convolution.transposed

    @property
    def rows(self) -> int:
        """Outputs of all groups."""
        return self.shape[1] * self.groups if self.transposed else self.shape[0]


@dataclass(frozen=True)
class Site:
    """One activation (a graph node's value) and the matrices that read it."""

    activation: str
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer that belongs to a group.

    `positions[b]` are the indices along `axis` that live and die with block `b`. `role` is "produces" (rows of the
    matrix that makes the axis, and its bias), "reads" (columns of a matrix that consumes it) or "carries" (norms,
    scales and buffers in between).
    """

    tensor: str
    axis: int
    role: str
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """One prunable axis: `blocks` things of which each can be removed.

    `kind` is what they are: "heads", "head_width" (the values inside a head), "residual" (the width over which branches
    are added), else "channels" of a convolution or "neurons" of a linear layer or embedding.
    `refused` says, where it cannot be pruned, which operator forbids it. `counted` names the norm, mean or softmax
    nodes that read the axis' width: there, removing is not the same as zeroing.
    """

    name: str
    blocks: int
    members: tuple[Member, ...]
    kind: str
    refused: str | None = None
    counted: tuple[str, ...] = ()


def sites(model: Model) -> tuple[Site, ...]:
    """The activations of `model` that a matrix reads, in execution order."""
    by_activation: dict[str, list[Matrix]] = {}
    for node in model.graph.nodes:
        found = matrix_of(model, node)
        if found is not None:
            by_activation.setdefault(node.all_input_nodes[0].name, []).append(found)
    return tuple(Site(activation, tuple(found)) for activation, found in by_activation.items())


def matrices(model: Model) -> tuple[Matrix, ...]:
    """All matrices of `model`, in execution order."""
    found = (matrix_of(model, node) for node in model.graph.nodes)
    return tuple(m for m in found if m is not None)


def tables(model: Model) -> tuple[Matrix, ...]:
    """The embeddings of `model`, whose rows are looked up: each once, and none whose values a matrix has, too."""
    taken = {model.tensor(m.weight).data_ptr() for m in matrices(model)}
    found = []
    for node in model.graph.nodes:
        if node.target is not aten.embedding.default or node.args[0].op != "get_attr":
            continue
        name = str(node.args[0].target)
        if model.tensor(name).data_ptr() not in taken:
            taken.add(model.tensor(name).data_ptr())
            found.append(Matrix(name.removesuffix(".weight"), node.name, name, None, tuple(model.tensor(name).shape)))
    return tuple(found)


def cells(model: Model) -> tuple[Matrix, ...]:
    """The matrices of recurrent layers, each under the name of its weight: what one gate after the other is made by."""
    found = []
    for recurrence in recurrences(model):
        for cell in (cell for layer in recurrence.layers for cell in layer):
            for weight, bias in zip(cell.weights, cell.biases or (None, None), strict=True):
                found.append(Matrix(weight, recurrence.node, weight, bias, tuple(model.tensor(weight).shape)))
    return tuple(found)


def groups(model: Model, dependency: Dependency | None = None) -> tuple[Group, ...]:
    """The prunable axes of `model`, in execution order, then the rows of matrices that cannot be pruned, and why not.

    A tensor that is read twice in different ways (a tied embedding) is a member once in each role. `dependency` is that
    of `model`, where it is known already.
    """
    dependency = dependency or analyse(model)
    shown = kinds(dependency.walk)
    convolutions = {m.weight for m in matrices(model) if m.convolution is not None}
    prunable = tuple(
        Group(
            family.name,
            len(family.variables),
            tuple(Member(t.tensor, t.axis, t.role, t.positions) for t in family.touches),
            _kind(family, shown, convolutions),
            counted=family.counted,
        )
        for family in dependency.families
    )
    names = {group.name for group in prunable}
    return prunable + tuple(_refused(model, dependency, names))


def budgeted(model: Model, group: Group) -> bool:
    """Whether a budget may narrow `group`: nothing refuses it, and its width counts nowhere, or only in softmaxes, where a few
    widths can be tried. What norms and means count changes for all that stay; that is only cut when it is asked for by name."""
    if group.refused is not None:
        return False
    counted = [node for node in model.graph.nodes if node.name in group.counted]
    return not counted or (group.blocks <= TRIED and all("softmax" in operator_name(node) for node in counted))


def _kind(family: Family, shown: Mapping[str, frozenset[int]], convolutions: set[str]) -> str:
    plain = "channels" if family.touches[0].tensor in convolutions else "neurons"
    return next((kind for kind, variables in shown.items() if variables.issuperset(family.variables)), plain)


def _refused(model: Model, dependency: Dependency, taken: set[str]) -> Iterator[Group]:
    for matrix in matrices(model):
        axis = 1 if matrix.convolution and matrix.convolution.transposed else 0
        labels = dependency.tensors[matrix.weight][axis]
        refused = dependency.refusal(labels)
        if refused is not None and matrix.name not in taken:
            taken.add(matrix.name)
            positions = tuple((i,) for i in range(len(labels)))
            made = (Member(matrix.weight, axis, "produces", positions),)
            plain = "channels" if matrix.convolution is not None else "neurons"
            yield Group(matrix.name, len(labels), made, plain, refused)


def matrix_of(model: Model, node: fx.Node) -> Matrix | None:
    """The matrix that `node` applies, if it is a linear or a convolution whose weight is a parameter."""
    found = matrix_arguments(node)
    if found is None:
        return None
    weight, bias, convolution = found
    name = str(weight.target)
    return Matrix(
        name=name.removesuffix(".weight"),
        node=node.name,
        weight=name,
        bias=str(bias.target) if bias is not None else None,
        shape=tuple(model.tensor(name).shape),
        convolution=Convolution(**convolution) if convolution else None,
    )
