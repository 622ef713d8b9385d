"""Models as users bring them: a function that returns a module, a `torch.export` archive, or Python objects.

`bring` finds the model and refuses what no later stage could use; `captured` turns it into the graph that Tersor
works on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tersor.errors import ModelError
from tersor.graph import faithful, lines
from tersor.graph.calling import register_dataclasses
from tersor.graph.model import Model, capture_whole, restore_whole
from tersor.graph.original import Original
from tersor.inputs import archive, functions
from tersor.inputs.encoder import Tokenise, sentence_encoder

Bringable: TypeAlias = "str | Path | nn.Module | ExportedProgram | tuple[nn.Module, Any]"

_QUANTISED = ("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic", "torchao.", "bitsandbytes.")
_CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Types of weights that another tool has packed; other whole numbers are tables of positions and the like."""
_QUANTISING = ("quantized", "torchao", "quantize_per", "fake_quant", "dequantize", "_int_mm", "pack_mm")
_RANDOM = ("bernoulli", "rand", "randn", "rand_like", "randn_like", "normal", "multinomial", "randint", "randperm")


@dataclass(frozen=True)
class Brought:
    """A model as the user brought it; `example` is one batch as (args, kwargs), None where none was given; `tokenise` makes
    inputs of sentences, where it came with a tokenizer. ours: it was read or copied for this run, and nobody else has it."""

    name: str
    module: nn.Module | ExportedProgram
    example: tuple[tuple[Any, ...], dict[str, Any]] | None
    tokenise: Tokenise | None = None
    ours: bool = False

    @property
    def wants(self) -> int:
        """How many inputs the forward pass requires."""
        if isinstance(self.module, ExportedProgram):
            return len(self.module.graph_signature.user_inputs)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.module.forward).parameters.values()
        return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def bring(model: Bringable) -> Brought:
    """Find the model that `model` names or is.

    A string is `path/to/file.py:function`, `package.module:function`, `path/to/archive.pt2` or the Hugging Face folder of an
    encoder; a function returns a module or (module, example). An example is a tensor, a tuple of tensors or a dict of tensors
    by argument name, first axis the batch. Raises `ModelError` where there is no model, where a weight is NaN or Inf, or is
    already quantized.
    """
    name = model if isinstance(model, str) else str(model) if isinstance(model, Path) else ""
    if not name:
        return _checked(_unpack(model, "", "The model"))
    if Path(name).is_dir():
        module, tokenise = sentence_encoder(name)
        example = _call_form(tokenise(["A sentence.", "Another one."]))
        return _checked(Brought(Path(name).resolve().name, module, example, tokenise, ours=True))
    if name.endswith(".pt2"):
        return _checked(_unpack(archive.read(Path(name)), name, f"MODEL '{name}'"))
    if name.endswith((".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".keras", ".h5")):
        raise ModelError(
            f"MODEL '{name}' holds no PyTorch program; write a function that builds the network and loads these "
            "weights, and bring it as path/to/file.py:function, or bring a torch.export archive (.pt2)."
        )
    function = functions.named(name, "MODEL", ModelError)
    made = functions.called(function, f"MODEL '{name}'", ModelError)
    return replace(_checked(_unpack(made, name, f"MODEL '{name}' returned")), ours=True)


def nbytes(brought: Brought) -> int:
    """Bytes of all parameters and buffers of a brought model."""
    module = brought.module
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else module.state_dict.values()
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def captured(brought: Brought, example: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> Model:
    """The graph of a brought model, traced on its own example, else on `example`, as (args, kwargs).

    Raises `ModelError` where the model cannot be traced, gives NaN, draws random numbers, mixes the items of a batch, or
    computes anything else than the graph.
    """
    return captured_whole(brought, example)[0]


def captured_whole(
    brought: Brought, example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
) -> tuple[Model, Original]:
    """The graph of a brought model as `captured` gives it, and what the user's module itself computes."""
    if isinstance(brought.module, ExportedProgram):
        model, original = restore_whole(brought.module)
    else:
        found = brought.example if brought.example is not None else example
        if found is None:
            raise ModelError(
                f"Model {brought.name} came without an example input; return (module, example), or give --data as well."
            )
        model, original = capture_whole(brought.module, *_example(found), ours=brought.ours)
    _check_graph(model)
    _check_outputs(model)
    faithful.check(model, original, model.example)
    return model, original


def _unpack(made: Any, name: str, where: str) -> Brought:
    example = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        bare = _unwrapped(made[0])
        made, example = bare, _call_form(made[1], bare)
    if isinstance(made, ExportedProgram):
        return Brought(name or "ExportedProgram", made, None)
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{where} is a {type(made).__name__}; expected a torch.nn.Module or (module, example input)"
            + ("; load these weights into a module and return that." if isinstance(made, Mapping) else ".")
        )
    made = _unwrapped(made)
    if isinstance(made, torch.jit.ScriptModule):
        raise ModelError(f"{where} is a TorchScript module, which torch.export cannot trace; bring the Python module.")
    return Brought(name or type(made).__name__, made, example)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module without what distributes or compiles it, which computes the same."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        else:
            return module


def _call_form(example: Any, module: nn.Module | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as (args, kwargs): one argument where the forward pass of `module` takes it only so."""
    whole: tuple[tuple[Any, ...], dict[str, Any]] = ((example,), {})
    if isinstance(example, Mapping):
        found: tuple[tuple[Any, ...], dict[str, Any]] = ((), dict(example))
    elif isinstance(example, list | tuple):
        found = (tuple(example), {})
    else:
        return whole
    if module is None or _takes(module, *found):
        return whole if module is not None and hasattr(example, "_fields") and _takes(module, *whole) else found
    return whole if _takes(module, *whole) else found


def _takes(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _example(found: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    register_dataclasses(found)
    leaves = pytree.tree_leaves(found)
    wrong = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | None)]
    leaves = [leaf for leaf in leaves if leaf is not None]
    if wrong or not leaves:
        raise ModelError(
            f"The example input holds {', '.join(sorted(set(wrong))) or 'nothing'}; only tensors can be inputs: "
            "wrap the model so that everything else is fixed."
        )
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ModelError(
            f"The example inputs have shapes {shapes}; the first axis of every input must be the same batch."
        )
    twice = sizes == {1}  # torch.export takes a size of one for a constant
    args, kwargs = pytree.tree_map(lambda t: _float32(torch.cat([t, t]) if twice and t is not None else t), found)
    return args, kwargs


def _float32(t: Tensor | None) -> Tensor | None:
    if t is None:
        return None
    t = t.detach().cpu()
    return t.float() if t.is_floating_point() else t


def _checked(brought: Brought) -> Brought:
    module = brought.module
    if isinstance(module, nn.Module):
        _check_modules(module, brought.name)
        tensors = [*module.named_parameters(), *module.named_buffers()]
    else:
        tensors = list(module.state_dict.items())
    parameters = {n for n, _ in module.named_parameters()}
    for name, tensor in tensors:
        _check_tensor(name, tensor, brought.name, name in parameters)
    if isinstance(module, nn.Module) and any(_is_foreign(t) for _, t in tensors):
        return replace(brought, module=_deepcopy(module).float().cpu(), ours=True)
    return brought


def _deepcopy(module: nn.Module) -> nn.Module:
    """A copy, also of what a forward pass has computed and left among the attributes, as old weight norms do."""
    held = (value for each in module.modules() for value in vars(each).values() if isinstance(value, Tensor))
    known: dict[int, Any] = {id(value): value.detach().clone() for value in held if not value.is_leaf}
    return copy.deepcopy(module, known)


def _is_foreign(t: Tensor) -> bool:
    return t.device.type != "cpu" or (t.is_floating_point() and t.dtype != torch.float32)


def _check_modules(module: nn.Module, model: str) -> None:
    for name, each in module.named_modules():
        kind = f"{type(each).__module__}.{type(each).__name__}"
        if isinstance(each, torch.jit.ScriptModule):
            raise ModelError(
                f"'{name}' of model {model} is a TorchScript module, which torch.export cannot trace; bring the Python module."
            )
        if kind.startswith(_QUANTISED) or "FakeQuantize" in kind:
            raise ModelError(
                f"Model {model} is already quantized: '{name}' is a {kind}; bring the float model it was made from."
            )


def _check_tensor(name: str, tensor: Tensor, model: str, is_parameter: bool) -> None:
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise ModelError(
            f"'{name}' of model {model} has no values yet: its layer takes its size from the first call; call the model once, "
            "or load its weights, before it is brought."
        )
    if tensor.device.type == "meta":
        raise ModelError(f"'{name}' of model {model} has no values (meta device); load the weights first.")
    odd = tensor.is_quantized or type(tensor).__module__.startswith(_QUANTISED)
    if odd or (is_parameter and tensor.dtype in _CODES):
        kind = type(tensor).__name__ if odd and not tensor.is_quantized else str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"Model {model} is already quantized: '{name}' holds {kind}; bring the float model that it was made from."
        )
    if tensor.is_floating_point() or tensor.is_complex():
        bounds = not is_parameter or not tensor.requires_grad  # infinity in a mask or a limit is no fault
        values = _stored(tensor.detach())
        bad = int((torch.isnan(values) if bounds else ~torch.isfinite(values)).sum())
        if bad:
            raise ModelError(
                f"'{name}' of model {model} holds {bad} NaN or Inf among {tensor.numel()} values; "
                "bring a checkpoint from before training diverged."
            )


def _stored(tensor: Tensor) -> Tensor:
    """The values that a tensor holds, sparse or not."""
    if tensor.layout == torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()


def _check_graph(model: Model) -> None:
    for node in model.graph.nodes:
        if node.op != "call_function":
            continue
        target = str(node.target)
        if any(word in target for word in _QUANTISING):
            raise ModelError(
                f"The model is already quantized: it applies {target}{_line(node)}; bring the float model."
            )
        if _is_random(node, target):
            raise ModelError(
                f"The model draws random numbers at inference: {target}{_line(node)}; "
                "make it depend on self.training (F.dropout(x, p, self.training))."
            )
        if "batch_norm" in target and any(each is True for each in node.args):  # a momentum may be 1.0
            raise ModelError(
                f"The model normalizes with batch statistics at inference: {target}{_line(node)}; an item's result would "
                "depend on the other items of its batch: use track_running_stats=True and train it so."
            )


def _is_random(node: fx.Node, target: str) -> bool:
    words = target.split(".")
    name = words[1].rstrip("_") if len(words) > 1 else target
    return name in _RANDOM or ("dropout" in name and any(each is True for each in node.args))


def _line(node: fx.Node) -> str:
    line = lines.of_node(node)
    return f" at {line}" if line else ""


def _check_outputs(model: Model) -> None:
    for name, value in zip(model.outputs, model.run(*model.example), strict=True):
        if not isinstance(value, Tensor):
            raise ModelError(f"Output '{name}' is a {type(value).__name__}; every output must be a tensor.")
        if value.ndim == 0 or value.shape[0] != model.example[0].shape[0]:
            raise ModelError(
                f"Output '{name}' has shape {tuple(value.shape)} for a batch of {model.example[0].shape[0]}; "
                "the first axis of every output must be the batch."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"Output '{name}' is NaN or Inf on the example input; check the input's range and the weights."
            )
