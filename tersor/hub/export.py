"""From a captured model to float32 ONNX, with the names that the user knows.

Inputs and outputs are called as in `Model.inputs` and `Model.outputs`, the batch axis is dynamic, and nothing that the
exporter notes for itself (stack traces, scopes) is left in the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from tersor.errors import ExportError
from tersor.graph.model import Model
from tersor.hub.names import value_names
from tersor.hub.tidy import merge_slices
from tersor.target import Compressed


@dataclass(frozen=True)
class Exported:
    """A float32 ONNX model, and the ONNX value that carries each graph node's activation (where one does).

    places: the user's line, "file:line", by ONNX node. values_known: type and shape by ONNX value, as the exporter had them.
    """

    onnx: ir.Model
    values: dict[str, str]
    places: dict[str, str] = field(default_factory=dict)
    values_known: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@lru_cache(maxsize=2)
def to_onnx(compressed: Compressed) -> Exported:
    """The dense float32 model as ONNX; feeds and weight forms are not in it yet (see `insertion`).

    Remembered for the last two models, since several targets export the same one: do not change what it gives.

    Raises `ExportError`, with the user's line where it is known, when the exporter refuses an operator.
    """
    model = compressed.model
    program = model.program()
    args, kwargs = model.arguments(model.example)
    with _quiet(), _one_table():
        try:
            made = torch.onnx.export(program, args, kwargs=kwargs, dynamo=True, verbose=False)
        except Exception as cause:
            raise ExportError(_why_not(program, cause)) from cause
    assert made is not None
    onnx = made.model
    values = value_names(model, program, made.exported_program, onnx) if compressed.feeds else {}
    renamed = _rename(onnx, model)
    merge_slices(onnx.graph)
    places = {
        str(node.name): place for node in onnx.graph if (place := _users_line(node.metadata_props.get(_TRACE, "")))
    }
    values_known = {
        str(v.name): (v.type, v.shape)
        for node in onnx.graph
        for v in node.outputs
        if v.type is not None and v.shape is not None
    }
    _strip(onnx)
    present = {str(v.name) for v in onnx.graph.inputs} | {str(v.name) for node in onnx.graph for v in node.outputs}
    named = {node: renamed.get(value, value) for node, value in values.items()}
    carried = {node: value for node, value in named.items() if value in present}
    return Exported(onnx, carried, places, values_known)


def _rename(onnx: ir.Model, model: Model) -> dict[str, str]:
    """Give inputs and outputs their names; inner values that bear one of these get out of the way."""
    graph = onnx.graph
    inputs = list(model.inputs)
    outputs = [f"{name}_out" if name in inputs else name for name in model.outputs]
    _check_count("inputs", graph.inputs, inputs)
    _check_count("outputs", graph.outputs, outputs)
    taken, renamed = {*inputs, *outputs}, {}
    for value in [v for node in graph for v in node.outputs] + list(graph.initializers.values()):
        if value.name in taken:
            renamed[str(value.name)] = f"{value.name}_inner"
            _set_name(graph, value, f"{value.name}_inner")
    for value, name in [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]:
        original = next((old for old, new in renamed.items() if new == value.name), str(value.name))
        renamed[original] = name
        value.name = name
    return renamed


def _set_name(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.is_initializer():
        del graph.initializers[str(value.name)]
        value.name = name
        graph.register_initializer(value)
    else:
        value.name = name


def _check_count(what: str, seen: object, wanted: list[str]) -> None:
    if len(list(seen)) != len(wanted):
        raise ExportError(
            f"The exported file has {len(list(seen))} {what} where the model has {len(wanted)} ({', '.join(wanted)}); "
            f"make sure that the forward pass takes and returns only tensors."
        )


def _strip(onnx: ir.Model) -> None:
    """Drop what the exporter noted for debugging, and the shapes of inner values (each runtime infers its own)."""
    graph = onnx.graph
    for holder in [onnx, graph, *graph]:
        holder.metadata_props.clear()
        holder.doc_string = None
    for value in [v for node in graph for v in node.outputs]:
        value.metadata_props.clear()
        if not value.is_graph_output():
            value.shape = value.type = None
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    _name_batch(graph)


def _name_batch(graph: ir.Graph) -> None:
    """Call the dynamic axes `batch`, `batch_1`, ... instead of what the tracer happened to number."""
    first = [str(v.shape[0]) for v in graph.inputs if v.shape is not None and len(v.shape) and _symbolic(v.shape[0])]
    names = {old: f"batch_{i}" if i else "batch" for i, old in enumerate(dict.fromkeys(first))}
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape([_substitute(d, names) for d in value.shape])


def _symbolic(dimension: object) -> bool:
    return isinstance(dimension, ir.SymbolicDim)


def _substitute(dimension: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dimension, int):
        return dimension
    text = dimension.value
    return None if text is None else re.sub(r"\w+", lambda m: names.get(m[0], m[0]), text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs about packages that do not matter here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _one_table() -> AbstractContextManager[object]:
    """Torch makes its table of ONNX operators anew for each export, which takes as long as exporting a small model."""
    known = _registry()
    if known is None:
        return contextlib.nullcontext()
    return patch.object(known[0], "from_torchlib", staticmethod(_table))


@cache
def _registry() -> tuple[Any, Callable[..., Any]] | None:
    """Torch's class of such tables, and how it makes one; None where a version of torch keeps them elsewhere."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    make = getattr(ONNXRegistry, "from_torchlib", None)
    return None if make is None else (ONNXRegistry, make)


def _table(*args: Any, **kwargs: Any) -> Any:
    """A copy: an export may add to it."""
    found = copy(_only_table(args, tuple(kwargs.items())))
    found.functions = {target: list(known) for target, known in found.functions.items()}
    return found


@cache
def _only_table(args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> Any:
    known = _registry()
    assert known is not None
    return known[1](*args, **dict(kwargs))


def _why_not(program: ExportedProgram, cause: Exception) -> str:
    chain: list[BaseException] = [cause]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = next((str(e) for e in chain if "translating node %" in str(e)), str(cause))
    found = re.search(r"translating node %(\w+)", text)
    operator, where = _operator_and_line(program, found[1]) if found else ("an operator", "")
    reason = (str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__])[0]
    return (
        f"The model cannot be written as ONNX: {operator}{where} has no translation ({reason}). "
        "Replace that operation by one that ONNX has, or use target eager or inductor."
    )


def _operator_and_line(program: ExportedProgram, name: str) -> tuple[str, str]:
    """What the user wrote where: looked up in the program, then in its decomposition (the exporter's names)."""
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.name == name:
                place = _users_line(node.meta.get("stack_trace", "") or "")
                return str(node.target), f" at {place}" if place else ""
    return name, ""


_TRACE = "pkg.torch.onnx.stack_trace"


def _users_line(trace: str) -> str:
    """The last line of a stack that is not torch's own, as "file:line"; "" where there is none."""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    mine = [place for place in places if "/torch/" not in place[0]] or places
    return f"{mine[-1][0]}:{mine[-1][1]}" if mine else ""
