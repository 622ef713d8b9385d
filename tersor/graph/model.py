"""The model inside Tersor: a `torch.export` graph in training IR, with a dynamic batch.

The graph is functional (`run_decompositions({})`): no in-place writes, no nested set_grad regions, and operators
such as `linear`, `layer_norm`, `scaled_dot_product_attention`, `lstm` stay whole. Parameters are `get_attr` nodes that
keep the user's names.
"""

from __future__ import annotations

import copy
import hashlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.errors import ModelError
from tersor.graph.computed import settle

Visitor = Callable[[fx.Node, Any], Any]


@dataclass(frozen=True)
class Model:
    """A captured model. Treat it as a value: `copy()` before editing `module`.

    `module` called with the user's arguments gives the user's structure. `run` takes the flat input tensors, in the
    order of `inputs`, and gives the flat outputs, in the order of `outputs`.
    """

    module: fx.GraphModule
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    structure: pytree.TreeSpec  # of (args, kwargs), as the user calls the model

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def copy(self) -> Model:
        """A model that shares nothing with this one."""
        return replace(self, module=_deepcopy(self.module))

    def arguments(self, flat: Sequence[Tensor]) -> tuple[tuple, dict]:
        """The flat inputs as the user's (args, kwargs)."""
        args, kwargs = pytree.tree_unflatten(list(flat), self.structure)
        return args, kwargs

    @torch.no_grad()
    def run(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """The flat outputs for flat inputs, without gradients."""
        deadline.check()
        args, kwargs = self.arguments(flat)
        return tuple(pytree.tree_leaves(self.module(*args, **kwargs)))

    def interpret(self, flat: Sequence[Tensor], visit: Visitor) -> tuple[Tensor, ...]:
        """Run node by node; `visit(node, value)` sees each value and returns the one to go on with."""
        deadline.check()
        args, kwargs = self.arguments(flat)
        return tuple(pytree.tree_leaves(_Visiting(self.module, visit).run(*pytree.tree_leaves((args, kwargs)))))

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer called `name`."""
        owner, _, leaf = name.rpartition(".")
        return getattr(self.module.get_submodule(owner), leaf)

    def assign(self, name: str, value: Tensor) -> None:
        """Replace a parameter or buffer, under every name that shares its storage."""
        old = self.tensor(name)
        alias = [n for n, t in self.tensors() if t.data_ptr() == old.data_ptr() and t.shape == old.shape] or [name]
        fresh = nn.Parameter(value.detach().clone(), requires_grad=False) if isinstance(old, nn.Parameter) else value
        for each in alias:
            owner, _, leaf = each.rpartition(".")
            setattr(self.module.get_submodule(owner), leaf, fresh)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer with every name it has."""
        yield from self.module.named_parameters(remove_duplicate=False)
        yield from self.module.named_buffers(remove_duplicate=False)

    def digest(self) -> str:
        """sha256 of the graph and of every parameter and buffer: the same for the same function."""
        found = hashlib.sha256(self.module.code.encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def program(self) -> ExportedProgram:
        """This model as an exported program with a dynamic batch."""
        args, kwargs = self.arguments(self.example)
        return _export(self.module, args, kwargs)


class _Visiting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, visit: Visitor):
        super().__init__(module)
        self._visit = visit

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        return self._visit(n, super().run_node(n))


def capture(module: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Model:
    """Capture a module, given one example batch (at least two items, first axis of every input).

    The model shares nothing with `module`, which is left as it was. Raises `ModelError` when `torch.export` cannot
    follow the module; the message names the user's line.
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        return _captured(module, tuple(args), dict(kwargs or {}))
    finally:
        for each, training in modes:
            each.training = training


def _captured(module: nn.Module, args: tuple, kwargs: dict) -> Model:
    try:
        with torch.no_grad():
            out = module(*args, **kwargs)
            program = _export(module, args, kwargs).run_decompositions({})
    except Exception as cause:
        raise ModelError(_why_not(cause)) from cause
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    graph_module = _deepcopy(graph_module)
    settle(graph_module)
    flat, structure = pytree.tree_flatten((args, kwargs))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for parameter in graph_module.parameters():
        parameter.requires_grad_(False)
    return Model(graph_module, tuple(flat), _input_names(graph_module), _output_names(out), structure)


def restore(program: ExportedProgram) -> Model:
    """A model from an exported program, for example one that `torch.export.load` read."""
    if program.example_inputs is None:
        raise ModelError("The exported archive holds no example inputs; export it again with example arguments.")
    args, kwargs = program.example_inputs
    return _captured(program.module(check_guards=False), args, kwargs)


def _deepcopy(module: fx.GraphModule) -> fx.GraphModule:
    with warnings.catch_warnings():  # torch warns about its own tree specifications
        warnings.simplefilter("ignore")
        return copy.deepcopy(module)


def _export(module: nn.Module, args: tuple, kwargs: dict) -> ExportedProgram:
    shapes = pytree.tree_map(lambda t: {0: Dim.DYNAMIC} if isinstance(t, Tensor) and t.ndim else None, (args, kwargs))
    if not kwargs:
        shapes = shapes[0]
    else:
        import inspect

        names = [p for p in inspect.signature(module.forward).parameters if p not in kwargs]
        shapes = {**dict(zip(names, shapes[0], strict=False)), **shapes[1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def _input_names(module: fx.GraphModule) -> tuple[str, ...]:
    # the target is the argument's own name; the node's name avoids builtins ("input" becomes "input_1")
    return tuple(str(n.target) for n in module.graph.nodes if n.op == "placeholder")


def _output_names(out: Any) -> tuple[str, ...]:
    if isinstance(out, Tensor):
        return ("output",)
    leaves = pytree.tree_leaves_with_path(out)
    if isinstance(out, Mapping):
        return tuple("_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path, _ in leaves)
    return tuple(f"output_{i}" for i in range(len(leaves)))


def _why_not(cause: Exception) -> str:
    lines = str(cause).strip().splitlines()
    what = lines[0].rstrip(". ") if lines else type(cause).__name__
    if "Constraints violated" in what:
        return (
            f"The model cannot be captured by torch.export: its forward pass works for one batch size only ({what}). "
            "Make it independent of the batch size, the first axis of every input and output."
        )
    where = [line.strip() for line in lines if 'File "' in line and "/torch/" not in line] or _users_frames(cause)
    place = f" at {where[-1]}" if where else ""
    return (
        f"The model cannot be captured by torch.export{place}: {type(cause).__name__}: {what}. "
        "Make the forward pass independent of tensor values and of the batch size, or bring an exported archive (.pt2)."
    )


def _users_frames(cause: Exception) -> list[str]:
    frames = traceback.extract_tb(cause.__traceback__)
    users = (f for f in frames if "site-packages" not in f.filename and f.filename != __file__)
    return [f'File "{f.filename}", line {f.lineno}, in {f.name}' for f in users if not f.filename.startswith("<")]
