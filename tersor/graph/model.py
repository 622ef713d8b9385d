"""The model inside Tersor: a `torch.export` graph in training IR, with a dynamic batch.

The graph is functional (`run_decompositions`): no in-place writes, no nested set_grad regions, and operators such as
`linear`, `layer_norm`, `scaled_dot_product_attention`, `lstm` stay whole. Products with a parameter are linear layers and
convolutions, however they were written. Parameters are `get_attr` nodes that keep the user's names.
"""

from __future__ import annotations

import copy
import hashlib
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tersor import deadline
from tersor.errors import ModelError
from tersor.graph import calling, lines
from tersor.graph.bags import unpack_bags
from tersor.graph.computed import settle, without_gradient
from tersor.graph.copies import spell_out_copies
from tersor.graph.naming import make_plain, refuse_unwritable
from tersor.graph.original import Original
from tersor.graph.products import straighten
from tersor.graph.spelled import SPELLED
from tersor.graph.state import Kept, undisturbed
from tersor.graph.writes import drop_writes
from tersor.maths.bits import raw

Visitor = Callable[[fx.Node, Any], Any]


@dataclass(frozen=True)
class Model:
    """A captured model. Treat it as a value: `copy()` before editing `module`, `clone()` before changing values in place.

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
        """A model with a graph of its own; values are shared with this one until `assign` replaces them, so that ten
        versions of a model do not hold ten times its weights."""
        return replace(self, module=_sharing(self.module, dict(self.tensors()).values()))

    def clone(self) -> Model:
        """A model that shares nothing with this one: its values may be changed in place."""
        return replace(self, module=_deepcopy(self.module, {}))

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
            found.update(raw(tensor.cpu()).numpy().data)
        return found.hexdigest()

    def program(self) -> ExportedProgram:
        """This model as an exported program with a dynamic batch."""
        args, kwargs = self.arguments(self.example)
        return calling.export(self.module, args, kwargs)


class _Visiting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, visit: Visitor):
        super().__init__(module)
        self.extra_traceback = False  # an error of a visitor is a sentence as it is
        self._visit = visit

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        return self._visit(n, super().run_node(n))


def capture(
    module: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, ours: bool = False
) -> Model:
    """Capture a module, given one example batch (at least two items, first axis of every input).

    The model shares nothing with `module`, which is left as it was; where it is `ours`, nobody else's, it shares the
    parameters. Raises `ModelError` when `torch.export` cannot follow the module, or where the module remembers what
    earlier calls did; the message names the user's line.
    """
    return capture_whole(module, args, kwargs, ours)[0]


def capture_whole(
    module: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, ours: bool = False
) -> tuple[Model, Original]:
    """The model, and the module itself as something that takes the same flat inputs."""
    refuse_unwritable(module)
    call = (tuple(args), dict(kwargs or {}))
    calling.register_dataclasses(call)
    leaves, structure = pytree.tree_flatten(call)
    fixed = tuple(leaf is None for leaf in leaves)
    flat = tuple(leaf for leaf in leaves if leaf is not None)
    original, awake = Original(module, structure, fixed), _left_training(module)
    with undisturbed(module):
        try:
            _called(original, flat)
            _refuse_training(original, flat, awake)
            args, kwargs = pytree.tree_unflatten([_copied(leaf) for leaf in leaves], structure)
            exported = calling.export(module, args, kwargs)
            graph_module = _unlifted(exported, ours)
        except ModelError:
            raise
        except Exception as cause:
            raise ModelError(_why_not(cause, _line_of_fixed_batch(original, flat, cause))) from cause
        original = replace(original, limits=calling.limits(exported))
        drop_writes(graph_module, lambda name: _line_that_moves(original, flat, name))
    make_plain(graph_module)
    spell_out_copies(graph_module)
    without_gradient(graph_module)
    unpack_bags(graph_module)
    straighten(graph_module)
    settle(graph_module)
    inputs, outputs, structure = calling.made_plain(graph_module, structure, fixed)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for parameter in graph_module.parameters():
        parameter.requires_grad_(False)
    return Model(graph_module, flat, inputs, outputs, structure), original


def restore(program: ExportedProgram) -> Model:
    """A model from an exported program, for example one that `torch.export.load` read."""
    return restore_whole(program)[0]


def restore_whole(program: ExportedProgram) -> tuple[Model, Original]:
    """The model of an exported program, and the program's own module."""
    if program.example_inputs is None:
        raise ModelError("The exported archive holds no example inputs; export it again with example arguments.")
    _refuse_one_batch(program)
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    leaves = [leaf for leaf in pytree.tree_leaves(program.example_inputs) if isinstance(leaf, Tensor)]
    if any(map(_of_other_precision, (*leaves, *module.parameters(), *module.buffers()))):
        _to_float32(module)
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: t.float() if _of_other_precision(t) else t, program.example_inputs
    )
    return capture_whole(module, args, kwargs, ours=True)


def _refuse_one_batch(program: ExportedProgram) -> None:
    """Raise `ModelError` where a program was exported for one size of batch."""
    names = program.graph_signature.user_inputs
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.ndim]
    if sizes and all(isinstance(size, int) for size in sizes):
        raise ModelError(
            f"The exported archive takes a batch of {min(sizes)} only; export it with dynamic_shapes that make the first axis "
            "of every input Dim.DYNAMIC, from an example of at least two items."
        )


def _of_other_precision(t: Tensor) -> bool:
    return t.is_floating_point() and t.dtype != torch.float32


def _to_float32(module: fx.GraphModule) -> None:
    """Let a program compute in float32, in place, without what insists on its own types."""
    module.float()
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)
    module.recompile()


def _called(original: Original, flat: Sequence[Tensor]) -> None:
    """Call the module once, as export would like caches to be filled. Raises `ModelError` where it changes its weights."""
    kept = Kept(original.module, parameters=True)
    calling.register_dataclasses(original.raw(*flat))
    parameters = {name for name, _ in original.module.named_parameters(remove_duplicate=False)}
    changed = [name for name in kept.moved() if name in parameters]
    kept.restore(caches=False)
    if changed:
        line = _line_that_moves(original, flat, changed[0])
        raise ModelError(
            f"The model changes its parameter '{changed[0]}' at inference{f' at {line}' if line else ''}; make the forward "
            "pass leave parameters unchanged."
        )


def _left_training(module: nn.Module) -> dict[str, nn.Module]:
    """What is in training mode, by name, within a part that is in evaluation mode: somebody wanted it so."""
    found: dict[str, nn.Module] = {}
    for name, place in module.named_modules():
        if not place.training or name in found:
            parts = ((f"{name}.{leaf}" if name else leaf, each) for leaf, each in place.named_children())
            found.update((path, each) for path, each in parts if each.training)
    return found


def _refuse_training(original: Original, flat: Sequence[Tensor], awake: Mapping[str, nn.Module]) -> None:
    """Raise `ModelError` where the module, called here in evaluation mode, computes something else with what was left in
    training mode."""
    if not awake:
        return
    usual = original.again(*flat)
    with undisturbed(original.module):
        for each in awake.values():
            each.training = True
        own = original.again(*flat)
    if all(_equal(a, b) for a, b in zip(usual, own, strict=True) if isinstance(a, Tensor)):
        return
    asking = [name for name, each in awake.items() if "training" in _names_in(each)]
    raise ModelError(
        f"'{(asking or list(awake))[0]}' is in training mode within a model that is in evaluation mode, and computes something "
        "else there than it would; call eval() on the whole model."
    )


def _names_in(module: nn.Module) -> tuple[str, ...]:
    """The names that a forward pass uses."""
    return getattr(getattr(module.forward, "__code__", None), "co_names", ())


def _equal(a: Tensor, b: Tensor) -> bool:
    wide = torch.complex128 if a.is_complex() else torch.float64
    return a.shape == b.shape and torch.allclose(a.to(wide), b.to(wide), rtol=1e-4, atol=1e-6, equal_nan=True)


def _line_that_moves(original: Original, flat: Sequence[Tensor], name: str) -> str:
    kept = Kept(original.module, parameters=True)
    try:
        return lines.where_moved(lambda: original.raw(*flat), lambda: name in kept.moved())
    finally:
        kept.restore()


def _line_of_fixed_batch(original: Original, flat: Sequence[Tensor], cause: Exception) -> str:
    """Which line fixes the batch, as torch knows it, or as the module itself says when it gets another one."""
    if not _fixes_the_batch(cause):
        return ""
    line = calling.line_of_fixed_batch(original, flat)
    if line:
        return line
    more = tuple(torch.cat([t, t[:1]]) for t in flat)
    try:
        original.raw(*more)
    except Exception as own:  # where it was raised is all that is asked
        return next(reversed(_users_frames(own)), "")
    return lines.parting(lambda: original.raw(*flat), lambda: original.raw(*more), lambda a, b: True)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _unlifted(program: ExportedProgram, ours: bool) -> fx.GraphModule:
    with warnings.catch_warnings():  # torch warns about its own tree specifications
        warnings.simplefilter("ignore")
        module = program.run_decompositions(dict(SPELLED)).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return _sharing(
        module, module.parameters() if ours else ()
    )  # never the buffers: a module that is run may change them


def _deepcopy(module: fx.GraphModule, known: dict[int, Any]) -> fx.GraphModule:
    with warnings.catch_warnings():  # torch warns about its own tree specifications
        warnings.simplefilter("ignore")
        return copy.deepcopy(module, known)


def _sharing(module: fx.GraphModule, shared: Iterable[Tensor]) -> fx.GraphModule:
    """A copy in which the tensors of `module` that are `shared` are others that lie in the same place."""
    known: dict[int, Any] = {}
    for each in shared:
        value = each.detach()
        known[id(each)] = nn.Parameter(value, requires_grad=False) if isinstance(each, nn.Parameter) else value
    return _deepcopy(module, known)


def _fixes_the_batch(cause: Exception) -> bool:
    return "Constraints violated" in str(cause)


def _why_not(cause: Exception, line: str) -> str:
    told = str(cause).strip().splitlines()
    what = told[0].rstrip(". ") if told else type(cause).__name__
    if _fixes_the_batch(cause):
        return (
            f"The model cannot be captured by torch.export: its forward pass works for one batch size only"
            f"{f', because of {line}' if line else f' ({what})'}. "
            "Make it independent of the batch size, the first axis of every input and output."
        )
    if "Cache'> in output" in what:
        return (
            "The model gives back a cache of keys and values, which no exported model can; build it with use_cache=False, or "
            "let it give its scores alone."
        )
    where = [each.strip() for each in told if 'File "' in each and "/torch/" not in each] or _users_frames(cause)
    place = f" at {where[-1]}" if where else ""
    return (
        f"The model cannot be captured by torch.export{place}: {type(cause).__name__}: {what}. "
        "Make the forward pass independent of tensor values and of the batch size, or bring an exported archive (.pt2)."
    )


def _users_frames(cause: Exception) -> list[str]:
    frames = traceback.extract_tb(cause.__traceback__)
    users = (f for f in frames if "site-packages" not in f.filename and lines.is_users(f.filename))
    return [lines.told(f.filename, f.lineno, f.name) for f in users]
