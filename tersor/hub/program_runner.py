"""Run an exported program with torch: what the eager and the inductor target share."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tersor import foreign
from tersor.errors import ArtifactError, ExportError
from tersor.graph.operators import aten
from tersor.hub.archive import load_program, save_program
from tersor.hub.files import named, refused
from tersor.maths.bits import as_array
from tersor.target import Audit, Compressed, Input, Operator, Runner, described, variables

FILE = "model.pt2"
_HEAVY = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose",
    "convolution",
    "linear",
    "mm",
    "bmm",
    "addmm",
    "matmul",
    "lstm",
    "gru",
)


Opened = Callable[[ExportedProgram, int], Callable[..., Any]]


def shown(opened: Opened, remark: str, inputs: Sequence[Input], threads: int) -> str:
    """The lines of a README for a program that `opened` makes a function of."""
    return (
        "from collections.abc import Callable\nfrom typing import Any\n\nimport torch\n\n\n"
        f"{inspect.getsource(opened)}\n\n"
        f"# threads sets torch's threads for the whole process. {remark}\n"
        f'run = opened(torch.export.load("{FILE}"), threads={threads})\n'
        f"{described(inputs, 'torch')}"
        f"outputs = run({', '.join(variables(inputs))})  # nested like the original model's inputs and outputs"
    )


def write_program(compressed: Compressed, folder: Path) -> None:
    """Write the dense model and the names of its inputs and outputs."""
    model = compressed.model
    names = json.dumps({"inputs": model.inputs, "outputs": model.outputs})
    try:
        save_program(model.program(), folder / FILE, {"names.json": names})
    except (RuntimeError, ValueError) as cause:
        raise ExportError(
            f"torch.export cannot save the model ({cause}); simplify its inputs to plain tensors."
        ) from cause


class ProgramRunner(Runner):
    """`opened` turns a program into what is called; with `threads` > 0 it sets torch's thread count for the whole process:
    torch has no other.
    """

    def __init__(self, folder: Path, threads: int, opened: Opened):
        program, extra = load_program(folder / FILE)
        self.inputs, self.outputs = _names(extra)
        self._operators = _operators(program)
        self._structure = program.call_spec.in_spec
        self._call = opened(program, threads)

    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        given = named(self.inputs, inputs)
        args, kwargs = pytree.tree_unflatten(_tensors(inputs), self._structure)
        try:
            return tuple(as_array(t) for t in pytree.tree_leaves(self._call(*args, **kwargs)))
        except RuntimeError as cause:
            raise refused(given, cause) from cause

    def call(self, *inputs: np.ndarray) -> Callable[[], object]:
        args, kwargs = pytree.tree_unflatten(_tensors(inputs), self._structure)
        return partial(self._call, *args, **kwargs)

    def audit(self) -> Audit:
        return Audit(self._operators)


def _names(extra: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of inputs and outputs, as `write_program` wrote them."""
    with foreign.reading(f"The names in {FILE}", ArtifactError, "it was not written by Tersor; export it again"):
        names = json.loads(extra["names.json"])
        found = tuple(names["inputs"]), tuple(names["outputs"])
        if not all(isinstance(name, str) for name in (*found[0], *found[1])):
            raise ValueError("a name is no text")
        return found


def _tensors(inputs: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(a if a.flags.writeable and a.flags.c_contiguous else a.copy()) for a in inputs]


def _operators(program: ExportedProgram) -> tuple[Operator, ...]:
    names = dict(program.graph_signature.inputs_to_parameters)
    found = []
    for node in program.graph.nodes:
        kind = str(node.target).removeprefix("aten.").partition(".")[0]
        if node.op == "call_function" and (kind in _HEAVY or node.target is aten.conv_transpose2d.input):
            weight = next((names[a.name] for a in node.all_input_nodes if a.name in names), node.name)
            found.append(
                Operator(weight.removesuffix(".weight"), kind, _precision(node), "this target computes in float")
            )
    return tuple(found)


def _precision(node: torch.fx.Node) -> str:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple) else value
    short = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
    return short.get(getattr(value, "dtype", torch.float32), "f32")
