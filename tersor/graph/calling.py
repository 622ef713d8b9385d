"""How a module is called: signatures with stars, inputs and outputs of classes that an archive could not name.

An archive holds tuples, lists and dicts only. Inputs of any other structure become one tensor after another, outputs a
tuple or a dict by name; what is None is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tersor.graph import lines
from tersor.graph.original import Limit, Original

_PLAIN = (None, tuple, list, dict, OrderedDict)


def export(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], dynamic: Any = Dim.DYNAMIC) -> ExportedProgram:
    """`module` exported with a batch of any size on the first axis of every input."""
    kwargs = dict(kwargs)
    if not isinstance(module, fx.GraphModule):
        module = _spelled(module, args, kwargs)
    arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    shapes = {name: _shapes(value, dynamic) for name, value in arguments.items()}
    said = io.StringIO()  # torch prints the graphs of what it cannot export
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    sys.stderr.write(said.getvalue())  # what the user's own functions said
    return program


def _shapes(value: Any, dynamic: Any) -> Any:
    """Which axes are dynamic, in the structure that torch wants: a list for what is no plain container."""
    if isinstance(value, Tensor):
        return {0: dynamic} if value.ndim else None
    node = pytree.SUPPORTED_NODES.get(type(value))
    if isinstance(value, dict) and type(value) in _PLAIN:
        return {key: _shapes(each, dynamic) for key, each in value.items()}
    if isinstance(value, tuple | list):
        each = [_shapes(part, dynamic) for part in value]
        return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)
    return [_shapes(part, dynamic) for part in node.flatten_fn(value)[0]] if node is not None else None


def limits(program: ExportedProgram) -> tuple[Limit, ...]:
    """What tracing took for granted of the batch size, each with the line that asked."""
    signature = program.graph_signature
    values = [
        n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in signature.user_inputs
    ]
    batch = [v.shape[0] for v in values if isinstance(v, Tensor) and v.ndim and isinstance(v.shape[0], torch.SymInt)]
    if not batch:
        return ()
    symbols = {symbol for size in batch for symbol in size.node.expr.free_symbols}
    found = []
    for guard in batch[0].node.shape_env.guards:
        if guard.expr.free_symbols <= symbols:
            found.append(Limit(_condition(guard.expr), _asked(guard)))
    return tuple(found)


def line_of_fixed_batch(original: Original, flat: Sequence[Tensor]) -> str:
    """The user's line that allows one batch size only; empty where it is not known."""
    try:
        program = export(original.module, *original.arguments(flat), Dim.AUTO)
    except Exception:  # it cannot be exported for another reason, which is told
        return ""
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    modes = [v.fake_mode for v in values if isinstance(v, torch._subclasses.FakeTensor)]
    guards = modes[0].shape_env.guards if modes and modes[0].shape_env is not None else []
    asked = (_asked(guard) for guard in guards)
    return next((line for line in asked if line), "")


def register_dataclasses(value: Any) -> None:
    """Let torch look into the dataclasses among the leaves of `value`, and into those within them."""
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            register_dataclasses(leaf)


def made_plain(
    module: fx.GraphModule, structure: pytree.TreeSpec, fixed: Sequence[bool]
) -> tuple[tuple[str, ...], tuple[str, ...], pytree.TreeSpec]:
    """Give a captured graph a plain structure, in place; (input names, output names, the structure of its call)."""
    holders = [n for n in module.graph.nodes if n.op == "placeholder"]
    info = module.graph._codegen.pytree_info
    # the target is the argument's own name; the node's name avoids builtins ("input" becomes "input_1")
    inputs = tuple(str(n.target) for n, none in zip(holders, fixed, strict=True) if not none)
    if any(fixed) or not _is_plain(structure):
        for holder, none in zip(holders, fixed, strict=True):
            if none:
                module.graph.erase_node(holder)
        structure = pytree.tree_structure((tuple(range(len(inputs))), {}))
        info = info._replace(orig_args=list(inputs), in_spec=structure)
    (output,) = module.graph.find_nodes(op="output")
    values = list(output.args[0])
    numbered = pytree.tree_unflatten(list(range(len(values))), info.out_spec)
    there = [value is not None for value in values]
    outputs = _distinct(name for name, has in zip(_output_names(numbered), there, strict=True) if has)
    if not all(there) or not _is_plain(info.out_spec):
        output.args = (tuple(value for value in values if value is not None),)
        info = info._replace(out_spec=pytree.tree_structure(_named(outputs)))
    module.graph._codegen.pytree_info = info
    module.recompile()
    return inputs, outputs, structure


def _named(names: Sequence[str]) -> Any:
    if names == ("output",):
        return 0
    if all(name.startswith("output_") and name[7:].isdigit() for name in names):
        return tuple(range(len(names)))
    return {name: index for index, name in enumerate(names)}


def _is_plain(spec: pytree.TreeSpec) -> bool:
    return spec.type in _PLAIN and all(_is_plain(child) for child in spec.children())


def _output_names(out: Any) -> tuple[str, ...]:
    leaves = pytree.tree_leaves_with_path(out)
    if isinstance(out, int):
        return ("output",)
    if isinstance(out, Mapping):
        return tuple("_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path, _ in leaves)
    return tuple(f"output_{i}" for i in range(len(leaves)))


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The same, with numbers behind those that were there before."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in count(2))
        found.append(name if name not in found else next(each for each in numbered if each not in found))
    return tuple(found)


class _Spelled(nn.Module):
    """A module under a signature that names each of its keyword arguments; its parameters keep their names."""


def _spelled(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> nn.Module:
    """`module`, or a stand-in where its `**kwargs` take some of these: torch finds no shapes for those."""
    signature = inspect.signature(module.forward)
    collected = [name for name, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
    bound = signature.bind(*args, **kwargs).arguments
    if not collected or collected[0] not in bound:
        return module
    given = [p for name, p in signature.parameters.items() if name in bound and name != collected[0]]
    given += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in bound[collected[0]]]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    forward.__signature__ = inspect.Signature(given)
    spelled = _Spelled()
    for shared in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        spelled.__dict__[shared] = module.__dict__[shared]
    spelled.__dict__["forward"] = forward
    return spelled.train(module.training)


def _condition(expression: Any) -> Callable[[int], bool]:
    def holds(batch: int) -> bool:
        value = expression.subs(dict.fromkeys(expression.free_symbols, batch))
        return value != False  # noqa: E712  sympy's own false; what stays symbolic is taken for true

    return holds


def _asked(guard: Any) -> str:
    frame = guard.sloc.framework_loc
    if frame is None or isinstance(frame, str) or not lines.is_users(frame.filename):
        return ""
    return lines.told(frame.filename, frame.lineno, frame.name)
