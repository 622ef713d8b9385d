"""What a model consists of, and what of it could be removed: nothing is changed or measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tersor.graph.macs import macs, products
from tersor.graph.model import Model
from tersor.inputs import data as data_input
from tersor.inputs import models
from tersor.inputs.described import Described, described
from tersor.inputs.encoder import as_arrays
from tersor.left_alone import LeftAlone, left_alone
from tersor.site import Group, Matrix, budgeted, cells, groups, matrices, tables


@dataclass(frozen=True)
class Tensors:
    """An input of the model; `shape` without the batch."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Counted:
    """One matrix: `macs` are multiply-accumulates per item, `parameters` its weight's and bias' values."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Axis:
    """One axis of the model: `blocks` things that the matrices `producers` make and `readers` take.

    kind: what they are ("channels", "neurons", "heads", "head_width", "residual").
    parameters: values that go with one block, on average. refused: why no block can be removed; None where one can.
    normalised: nodes that read the axis' width, so that removing a block is not the same as making it zero. budgeted:
    whether `prune` narrows it on its own to meet a budget; where not, only `Decisions(keep=...)` does.
    """

    name: str
    kind: str
    blocks: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    parameters: float
    refused: str | None
    normalised: tuple[str, ...]
    budgeted: bool = True


@dataclass(frozen=True)
class Product:
    """Products that are no layers, by operator: multiply-accumulates per item, in no budget."""

    operator: str
    macs: int


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` found. macs: of the layers; left_alone: the parameters that are in none of them, and why."""

    model: str
    inputs: tuple[Tensors, ...]
    outputs: tuple[str, ...]
    parameters: int
    macs: int
    layers: tuple[Counted, ...]
    axes: tuple[Axis, ...]
    products: tuple[Product, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    data: Described | None = None


def inspect(model: Any, data: Any = None) -> Inspection:
    """Layers, parameters, multiply-adds, the axes that can be pruned, or why they cannot, and the parameters outside layers.

    model: a module, (module, example), an exported program, or their spec. data: shown as it is read; if the model comes
    without an example, its first batch is the example. Raises `ModelError` or `DataError` whose message is one sentence.
    """
    brought = models.bring(model)
    source = None if data is None else _source(data, brought)
    example = None if source is None or brought.example is not None else data_input.example(source, brought)
    captured = models.captured(brought, example)
    work = macs(captured)
    layers = tuple(_counted(captured, matrix, _kind(matrix), work) for matrix in _once(matrices(captured)))
    for kind, some in (("embedding", tables(captured)), ("recurrent", cells(captured))):
        layers += tuple(_counted(captured, matrix, kind, work) for matrix in _once(some))
    return Inspection(
        brought.name,
        tuple(
            Tensors(name, tuple(t.shape[1:]), str(t.dtype).removeprefix("torch."))
            for name, t in zip(captured.inputs, captured.example, strict=True)
        ),
        captured.outputs,
        sum(t.numel() for t in captured.module.parameters()),
        sum(work.values()),
        layers,
        tuple(_axis(captured, group) for group in groups(captured)),
        tuple(Product(name, cost) for name, cost in products(captured).items()),
        left_alone(captured),
        data=None if source is None else described(source, captured),
    )


def _source(data: Any, brought: models.Brought) -> data_input.Source:
    if brought.tokenise is not None:
        data = as_arrays(data, brought.tokenise, "DATA", scored=True)
    return data_input.bring(data)


def _once(found: Iterable[Matrix]) -> Iterable[Matrix]:
    return {matrix.name: matrix for matrix in found}.values()


def _counted(model: Model, matrix: Matrix, kind: str, work: dict[str, int]) -> Counted:
    bias = model.tensor(matrix.bias).numel() if matrix.bias else 0
    return Counted(
        matrix.name, kind, matrix.shape, model.tensor(matrix.weight).numel() + bias, work.get(matrix.name, 0)
    )


def _kind(matrix: Matrix) -> str:
    how = matrix.convolution
    if how is None:
        return "linear"
    kernel = "x".join(map(str, how.kernel))
    rows = matrix.shape[1] * how.groups if how.transposed else matrix.shape[0]
    depthwise = how.groups > 1 and how.groups == (matrix.shape[0] if how.transposed else rows)
    grouped = "depthwise " if depthwise else f"grouped({how.groups}) " if how.groups > 1 else ""
    return f"{grouped}{'transposed ' if how.transposed else ''}convolution {kernel}"


def _axis(model: Model, group: Group) -> Axis:
    values = 0
    for member in group.members:
        tensor = model.tensor(member.tensor)
        values += sum(len(p) for p in member.positions) * tensor.numel() // tensor.shape[member.axis]
    weights = [(m.role, m.tensor.removesuffix(".weight")) for m in group.members if not m.tensor.endswith(".bias")]
    return Axis(
        group.name,
        group.kind,
        group.blocks,
        tuple(dict.fromkeys(name for role, name in weights if role == "produces")),
        tuple(dict.fromkeys(name for role, name in weights if role == "reads")),
        values / group.blocks if group.blocks else 0.0,
        group.refused,
        group.counted,
        budgeted(model, group),
    )
