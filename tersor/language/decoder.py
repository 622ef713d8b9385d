"""A decoder-only language model of which only what surrounds the blocks is in memory, and a block at a time.

The model is built from its configuration without memory for weights (torch's `meta` device). In place of its blocks stand
catchers: what the model would pass to a block (hidden states, position embeddings, masks) is caught there, and
hidden states that were computed elsewhere go on from there. Everything is computed in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tersor import foreign
from tersor.errors import MissingRuntime, ModelError
from tersor.language.folder import Folder


@dataclass(frozen=True)
class Call:
    """What a block is called with after its hidden states (batch, positions, width)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Decoder:
    """The model of `folder`. `place`: the name of its list of blocks; `blocks`: that list, without memory."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._model = _skeleton(folder)
        self.place, self.blocks = decoder_blocks(self._model, folder)
        self._stored = _stored(self._model, folder)
        self._calls: dict[tuple[int, ...], list[Call]] = {}
        self._fill_surroundings()
        self._nested, self._width = self._tried()

    @property
    def vocabulary(self) -> int:
        """Token ids lie below."""
        return self._model.get_input_embeddings().num_embeddings

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self._width

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """Every linear layer of the model, by name; without values."""
        return {name: m for name, m in self._model.named_modules() if isinstance(m, nn.Linear)}

    @property
    def owners(self) -> dict[str, str]:
        """The kind of module that holds each parameter of the model, by the parameter's name."""
        modules = self._model.named_modules()
        return {
            f"{place}.{name}".lstrip("."): type(module).__name__
            for place, module in modules
            for name, _ in module.named_parameters(recurse=False)
        }

    def has(self, name: str) -> bool:
        """Whether the folder holds the parameter `name` of the model; of two that are tied it may hold one."""
        return name in self._stored

    def stored(self, name: str) -> str:
        """The name under which the folder holds the parameter `name` of the model. Raises `ModelError` where it does not."""
        if name in self._stored:
            return self._stored[name]
        raise ModelError(f"{self._folder.path} lacks the weight '{name}', which the architecture needs.")

    def block(self, index: int) -> nn.Module:
        """Block `index` with its values. Raises `ModelError` where one is missing, of another shape, NaN or Inf."""
        block = copy.deepcopy(self.blocks[index])
        self._fill(block, f"{self.place}.{index}.", (name for name, _ in block.named_parameters()))
        return block

    @torch.no_grad()
    def enter(self, ids: Tensor) -> Tensor:
        """The hidden states (batch, positions, width) that the first block reads, for `ids` (batch, positions)."""
        return self._caught(ids, [_Catcher(b, True, False) for b in self.blocks])[0][0]

    def call(self, index: int, shape: torch.Size) -> Call:
        """What block `index` is called with beside hidden states, for ids of `shape`."""
        key = tuple(shape)
        if key not in self._calls:
            catchers = [_Catcher(b, False, self._nested) for b in self.blocks]
            catchers[-1].stops = True
            self._calls[key] = [c for _, c in self._caught(torch.zeros(shape, dtype=torch.long), catchers)]
        return self._calls[key][index]

    @torch.no_grad()
    def run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        """What `block`, standing at `index`, makes of `hidden`."""
        return self.through(block, index, {}, hidden)

    def through(self, block: nn.Module, index: int, values: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """The same with other parameters `values`, by their names in the block, and with gradients."""
        call = self.call(index, hidden.shape[:2])
        found = functional_call(block, dict(values), (hidden, *call.args), dict(call.kwargs))
        return found[0] if isinstance(found, tuple) else found

    @torch.no_grad()
    def leave(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """The scores (batch, positions, vocabulary) once `hidden` has left the last block."""
        catchers = [_Catcher(b, False, self._nested) for b in self.blocks]
        catchers[-1].answer = hidden
        with self._in_place(catchers):
            return self._model(input_ids=ids, use_cache=False).logits

    @torch.no_grad()
    def _tried(self) -> tuple[bool, int]:
        """Whether blocks answer with tuples, and the width of hidden states."""
        ids = torch.zeros(1, 2, dtype=torch.long)
        hidden, call = self._caught(ids, [_Catcher(b, True, False) for b in self.blocks])[0]
        return isinstance(self.block(0)(hidden, *call.args, **call.kwargs), tuple), hidden.shape[2]

    @torch.no_grad()
    def _caught(self, ids: Tensor, catchers: Sequence[_Catcher]) -> list[tuple[Tensor, Call]]:
        with self._in_place(catchers), suppress(_Caught):
            self._model(input_ids=ids, use_cache=False)
        return [c.seen for c in catchers if c.seen is not None]

    @contextmanager
    def _in_place(self, catchers: Sequence[nn.Module]) -> Iterator[None]:
        kept = list(self.blocks)
        try:
            for i, catcher in enumerate(catchers):
                self.blocks[i] = catcher
            yield
        finally:
            for i, block in enumerate(kept):
                self.blocks[i] = block

    def _fill_surroundings(self) -> None:
        tied = getattr(self._model, "all_tied_weights_keys", {})
        around = [n for n, _ in self._model.named_parameters() if not n.startswith(self.place + ".")]
        own = [n for n in around if n not in tied or n in self._stored]
        self._fill(self._model, "", own)
        self._model.tie_weights()
        for name, parameter in self._model.named_parameters():
            if parameter.is_meta and not name.startswith(self.place + "."):
                self.stored(name)  # raises
        for name, buffer in self._model.named_buffers():
            if buffer.is_meta:
                raise ModelError(f"{self._folder.path}: the buffer '{name}' of this architecture cannot be rebuilt.")

    def _fill(self, module: nn.Module, prefix: str, names: Iterable[str]) -> None:
        """Give the parameters `names` of `module` their values; `prefix`: the module's own name with a dot."""
        stored = {name: self.stored(prefix + name) for name in names}
        values = self._folder.read(stored.values())
        for name, key in stored.items():
            owner, _, leaf = name.rpartition(".")
            holder = module.get_submodule(owner)
            wanted, value = getattr(holder, leaf), values.pop(key)
            if wanted.shape != value.shape:
                raise ModelError(
                    f"'{key}' has the shape {tuple(value.shape)}; config.json asks for {tuple(wanted.shape)}."
                )
            if not bool(torch.isfinite(value).all()):
                raise ModelError(
                    f"'{key}' holds NaN or Inf; the folder is damaged or was trained badly: repair it first."
                )
            setattr(holder, leaf, nn.Parameter(value.float(), requires_grad=False))


class _Caught(Exception):
    """A catcher has what it waits for."""


class _Catcher(nn.Module):
    """Stands where `block` stands; whatever else the model asks of it, the block answers."""

    def __init__(self, block: nn.Module, stops: bool, nested: bool):
        super().__init__()
        self.block, self.stops, self.nested = block, stops, nested
        self.answer: Tensor | None = None
        self.seen: tuple[Tensor, Call] | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # the architecture's own signature
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        self.seen = hidden, Call(args, kwargs)
        if self.stops:
            raise _Caught
        found = hidden if self.answer is None else self.answer
        return (found,) if self.nested else found


def decoder_blocks(model: nn.Module, folder: Folder) -> tuple[str, nn.ModuleList]:
    """The longest list of modules of one class, and its name. Raises `ModelError` where there is none."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    inner = [n for n, _ in lists if any(n.startswith(outer + ".") for outer, _ in lists)]  # experts of one block, say
    alike = [(n, m) for n, m in lists if n not in inner and len({type(each) for each in m}) == 1]
    if not alike:
        raise ModelError(
            f"{folder.path}: the architecture {type(model).__name__} has no list of decoder blocks of one class; bring such a "
            "model as a function that returns the module (path/to/file.py:function)."
        )
    return max(alike, key=lambda found: len(found[1]))


def _stored(model: Any, folder: Folder) -> dict[str, str]:
    """The name in the folder of each parameter, by its name in the model: older folders use other names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    return {rename_source_key(key, renamings, [], prefix, state)[0]: key for key in folder.files}


def _skeleton(folder: Folder) -> Any:
    """The `PreTrainedModel` without memory for weights; buffers that no file holds have their values."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as cause:
        raise MissingRuntime(
            "Folders of language models need transformers; install it: pip install transformers"
        ) from cause
    with foreign.reading(
        f"The configuration in '{folder.path}'",
        ModelError,
        "give the folder of a causal language model that transformers knows",
    ):
        config = AutoConfig.from_pretrained(str(folder.path), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        if own and all(b.is_meta for b in own.values()):
            for name, buffer in own.items():
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            model._init_weights(module)  # what from_pretrained does, too: buffers that no file holds
    return model.eval()
