"""A model as it is trained: parameters free, decided weights seen through the set they were chosen from, norms at work.

A decided weight (a form on a grid, with zeros in certain places, ...) has a latent value, a plain parameter; every pass
uses the nearest point of its set, and the gradient goes straight through to the latent value. What is trained therefore
always is what will be stored. Static feeds round activations in every pass. The steps of grids are learned, for weights and
for activations: the gradient for a step is that of the rounding it does (Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from tersor import deadline
from tersor.forms.affine import Affine
from tersor.graph.codes import leaving, read_as_codes
from tersor.graph.likelihood import categorical
from tersor.graph.model import Model
from tersor.graph.operators import aten
from tersor.loss import Seen
from tersor.measuring.classes import decision_axis
from tersor.memory import is_memory
from tersor.recovery.sharding import Gathered, Shards
from tersor.rewrites.fold_norms import fold_norms, foldable, row_scales
from tersor.shelf import RESIDENT
from tersor.site import Matrix, cells, matrices
from tersor.target import Compressed, Grid
from tersor.weight import Weight

STEP, UP, DOWN = "step of ", "up of ", "down of "
"""What the names of parameters begin with that are the step of a grid, or the halves of what is added to a weight."""
REMEMBERED = 4 << 30
"""Bytes of outputs that are kept on disk at most."""
_LEAST = 1e-12  # of the steps of grids
_FEW = 16  # items of which all activations are held
_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


class Network:
    """What `compressed` is, to be trained. The compressed model itself is left alone."""

    def __init__(
        self,
        compressed: Compressed,
        moving_norms: bool = True,
        rank: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        divide: int | None = None,
    ):
        """moving_norms: batch norms use each batch's own statistics and follow them; else they stay as they are.

        rank: where it is not 0, weights of linear layers stay and learn a sum `W + U D` with U (rows, rank) and D (rank,
        columns), nothing else moves but steps of grids, and the sum is what comes out (Hu et al. 2021, arXiv:2106.09685).
        device: where it computes; inputs are brought there, and what comes out of `compressed` is on the CPU again.
        divide: parameters of at least so many values are divided among the processes; None: every process has all of them.
        """
        self.model, self.device = compressed.model.clone(), torch.device(device)
        found = matrices(self.model)
        multiplying = [m.weight for m in (*found, *cells(self.model))]
        self._readers = frozenset(m.node for m in found)
        self.shards = Shards(self.model.module, self.device, divide)
        _settle(self.model, self.device)
        self.names = _first_names(self.model)  # every name of a parameter, and the one it has in `parameters`
        self.multiplying = frozenset(self.names[name] for name in multiplying)
        """The parameters that are matrices of linear layers, convolutions and recurrent cells."""
        self.kept: dict[str, Weight] = {self.names[n]: weight.to(device) for n, weight in compressed.weights.items()}
        self.feeds = dict(compressed.feeds)
        self._moving = moving_norms and not rank
        self._given = dict(compressed.weights)
        self.parameters: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.module.named_parameters():
            if parameter.is_floating_point() and not rank:
                parameter.requires_grad_(True)
                self.parameters[name] = parameter
        if rank:
            self._add_adapters(found, rank, torch.Generator().manual_seed(seed))
        for name, feed in self.feeds.items():
            if isinstance(feed, Grid):
                self.parameters[f"{STEP}{name}"] = nn.Parameter(torch.tensor(feed.scale, device=device))
        for name, weight in self.kept.items():
            if isinstance(weight, Affine):
                self.parameters[f"{STEP}{name}"] = nn.Parameter(weight.scale.clone())
        added = [name for name in self.names.values() if f"{UP}{name}" in self.parameters]
        self._changed = list(dict.fromkeys([*self.kept, *added]))  # the parameters that are not used as they are

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What passes change: the statistics of norms."""
        return dict(self.model.module.named_buffers())

    def __call__(self, flat: Sequence[Tensor], nodes: Collection[str] = (), training: bool = True) -> Seen:
        """Outputs by name, and the activations of `nodes`, with gradients where torch has them switched on."""
        moving = training and self._moving

        def answers(value: Callable[[str], Tensor | None], late: Collection[str] = ()) -> Seen:
            run = _Run(self.model.module, value, self._rounding(), set(nodes), moving, self._readers, late)
            return run.answers(self.model, flat, self.device)

        if self.shards.shapes:
            late = [name for name, first in self.names.items() if first in self._changed or first in self.shards.shapes]
            with Gathered(self._gathered, self._multiplied) as gathered:
                return answers(gathered, late)
        values = {name: self._value(name) for name in self._changed}
        values |= {name: values[first] for name, first in self.names.items() if first in values}
        return answers(values.get)

    @torch.no_grad()
    def moments(self, nodes: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance of each channel, the second axis, of what `nodes` give on these inputs; float64, on the CPU."""
        sums = {name: torch.zeros(2, 1, dtype=torch.float64) for name in nodes}
        count = dict.fromkeys(nodes, 0)
        for few in (few for batch in batches for few in zip(*(t.split(_FEW) for t in batch), strict=True)):
            deadline.check()
            for name, value in self(few, nodes, training=False).inner.items():
                flat = value.transpose(0, 1).flatten(1).cpu().double()
                sums[name] = sums[name] + torch.stack([flat.sum(1), flat.square().sum(1)])
                count[name] += flat.shape[1]
        means = {name: sums[name] / max(1, count[name]) for name in nodes}
        return {name: (mean, (power - mean.square()).clamp_min(0)) for name, (mean, power) in means.items()}

    def whole(self) -> Model:
        """The model as it is trained, with nothing divided: norms in place, weights free."""
        return _whole(self.model, self.shards)

    @torch.no_grad()
    def compressed(self) -> Compressed:
        """What it has become: norms folded, weights the nearest of their sets, nothing free."""
        model = self.model.clone()
        self.shards.restore(model.module)
        model.module.to("cpu")
        for parameter in model.module.parameters():
            parameter.data = parameter.data.contiguous()
        for name in self._changed:
            latent = self._latent(name).cpu().contiguous()
            model.assign(name, self._settled(name, latent).dense() if name in self.kept else latent)
        for parameter in model.module.parameters():
            parameter.requires_grad_(False)
        scales = row_scales(model)
        places = {norm.name: str(norm.args[0]) for norm, _ in foldable(model)}
        model = fold_norms(model)
        weights = {n: self._settled(self.names[n], model.tensor(n), scales.get(n)) for n in self._given}
        for name in weights.keys() & scales.keys():
            model.assign(name, weights[name].dense())
        feeds = {
            places.get(name, name): replace(feed, scale=float(_positive(self.parameters[f"{STEP}{name}"])))
            if isinstance(feed, Grid)
            else feed
            for name, feed in self.feeds.items()
        }
        return Compressed(model, weights, feeds)

    def _add_adapters(self, found: Sequence[Matrix], rank: int, drawn: torch.Generator) -> None:
        for matrix in found:
            if matrix.convolution is None and len(matrix.shape) == 2:
                name, (rows, columns) = self.names[matrix.weight], matrix.shape
                down = torch.randn(rank, columns, generator=drawn) / columns**0.5
                self.parameters[f"{UP}{name}"] = nn.Parameter(torch.zeros(rows, rank, device=self.device))
                self.parameters[f"{DOWN}{name}"] = nn.Parameter(down.to(self.device))

    def _latent(self, name: str) -> Tensor:
        own = _laid(self.shards.whole(name, self.model.tensor(name)))
        if f"{UP}{name}" not in self.parameters:
            return own
        return own.detach() + self.parameters[f"{UP}{name}"] @ self.parameters[f"{DOWN}{name}"]

    def _value(self, name: str) -> Tensor:
        latent, weight = self._latent(name), self.kept.get(name)
        if weight is None:
            return latent
        if isinstance(weight, Affine):
            return weight.through(latent, _positive(self.parameters[f"{STEP}{name}"]))
        value = weight.nearest(latent.detach()).dense()
        return latent + (value - latent).detach()

    def _gathered(self, name: str) -> Tensor | None:
        first = self.names.get(name)
        if first in self._changed and isinstance(self.kept.get(first), Affine):  # whose rounding autograd keeps much of
            return checkpoint(self._value, first, use_reentrant=False, preserve_rng_state=False)
        return self._value(first) if first in self._changed or first in self.shards.shapes else None

    @cached_property
    def _multiplied(self) -> frozenset[str]:
        """What only linear layers and convolutions read, which autocast casts."""
        read = [node for node in self.model.graph.nodes if node.op == "get_attr"]
        return frozenset(str(node.target) for node in read if all(user.name in self._readers for user in node.users))

    def _settled(self, name: str, latent: Tensor, rows: Tensor | None = None) -> Weight:
        """The kept weight nearest to `latent`; rows: what a norm that was folded has multiplied its matrix' rows with."""
        weight = self.kept[name].to("cpu")
        if isinstance(weight, Affine):
            weight = replace(weight, scale=_positive(self.parameters[f"{STEP}{name}"].detach().cpu()))
        scaled = None if rows is None else weight.rescaled(rows.abs().clamp_min(_LEAST))
        return (weight if scaled is None else scaled).nearest(latent)

    def _rounding(self) -> dict[str, tuple[Tensor, Grid]]:
        return {n: (_positive(self.parameters[f"{STEP}{n}"]), f) for n, f in self.feeds.items() if isinstance(f, Grid)}


def _first_names(model: Model) -> dict[str, str]:
    """Every parameter name, and the name under which the same parameter is found first."""
    first = {id(parameter): name for name, parameter in model.module.named_parameters()}
    return {name: first[id(p)] for name, p in model.module.named_parameters(remove_duplicate=False)}


class Teacher:
    """A model that is only asked. Under `folder`, what it said about each item is kept on disk and not computed again."""

    def __init__(
        self,
        model: Model,
        folder: Path | None = None,
        items: int = 0,
        device: torch.device | str = "cpu",
        divide: int | None = None,
    ):
        """folder, items: where to keep outputs, and for how many items there may be; else nothing is kept.
        device: where it computes, and where its answers are. divide: as a `Network` has it."""
        self.model, self.device = model, torch.device(device)
        if self.device.type != "cpu" or divide is not None:
            self.model = model.clone()
        self.shards = Shards(self.model.module, self.device, divide)
        if self.model is not model:
            _settle(self.model, self.device)
        self._names = _first_names(self.model)
        self._folder, self._items = folder, items
        self._known = torch.zeros(items, dtype=torch.bool)
        self._said: dict[str, np.memmap] = {}

    @torch.no_grad()
    def __call__(self, flat: Sequence[Tensor], nodes: Collection[str] = (), items: Tensor | None = None) -> Seen:
        """Outputs by name, and the activations of `nodes`. items: which of the data these are, where it is worth keeping."""
        keeping = self._folder is not None and items is not None and not nodes
        if keeping and items is not None and self.shards.all(bool(self._known[items].all())):
            found = {name: torch.from_numpy(np.array(said[items.numpy()])) for name, said in self._said.items()}
            return Seen({name: said.to(self.device) for name, said in found.items()}, axes=_axes(found, flat))
        late = [name for name, first in self._names.items() if first in self.shards.shapes]
        run = _Run(self.model.module, self._gathered, {}, set(nodes), False, late=late)
        seen = run.answers(self.model, flat, self.device)
        if keeping and items is not None:
            self._keep(seen, items)
        return seen

    def whole(self) -> Model:
        """The model, with nothing divided."""
        return _whole(self.model, self.shards)

    def _gathered(self, name: str) -> Tensor | None:
        first = self._names.get(name)
        return _laid(self.shards.whole(first, self.model.tensor(first))) if first in self.shards.shapes else None

    def _keep(self, seen: Seen, items: Tensor) -> None:
        assert self._folder is not None
        whole = sum(t[0].numel() for t in seen.outputs.values()) * 4 * self._items
        if whole > REMEMBERED or (whole > RESIDENT and is_memory(self._folder)):
            return
        if any(not t.is_floating_point() or len(t) != len(items) for t in seen.outputs.values()):
            return
        for number, (name, output) in enumerate(seen.outputs.items()):
            if name not in self._said:
                shape = (self._items, *output.shape[1:])
                file = self._folder / f"{number}.f32"
                if not _made(file, 4 * math.prod(shape)):
                    return  # there is no room: the teacher is asked again
                self._said[name] = np.memmap(file, np.float32, "r+", shape=shape)
            if self._said[name].shape[1:] != output.shape[1:]:
                return  # items of several shapes
            self._said[name][items.numpy()] = output.float().cpu().numpy()
        self._known[items] = True


def _made(file: Path, size: int) -> bool:
    """Whether there was room for a file of `size` bytes. One that has no room yet is a signal where it is written to."""
    try:
        with file.open("wb") as made:
            os.posix_fallocate(made.fileno(), 0, size)
    except OSError:
        file.unlink(missing_ok=True)
        return False
    return True


class _Run(fx.Interpreter):
    """One pass, node by node. A graph names all parameters first; those that are `late` are read where they are used."""

    def __init__(
        self,
        module: fx.GraphModule,
        value: Callable[[str], Tensor | None],
        rounding: Mapping[str, tuple[Tensor, Grid]],
        nodes: Collection[str],
        moving: bool,
        readers: Collection[str] = (),
        late: Collection[str] = (),
    ):
        super().__init__(module)
        self._value, self._nodes, self._moving, self._readers = value, nodes, moving, readers
        self._leaves = leaving(module.graph) if rounding else frozenset()
        out = {n.name for n in self._leaves}
        self._stored = {name: pair for name, pair in rounding.items() if pair[1].stored and name not in out}
        self._apart = {name: pair for name, pair in rounding.items() if pair[1].stored and name in out}
        self._late = frozenset(
            n
            for n in module.graph.nodes
            if n.op == "get_attr" and n.target in late and n.name not in {*nodes, *rounding}
        )
        self._read = {name: pair for name, pair in rounding.items() if not pair[1].stored}
        self.seen: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    def answers(self, model: Model, flat: Sequence[Tensor], device: torch.device) -> Seen:
        """What `model`, whose module this runs on `device`, says of flat inputs from anywhere."""
        self._device = device
        args, kwargs = model.arguments([_laid(t.to(device)) for t in flat])
        outputs = pytree.tree_leaves(self.run(*pytree.tree_leaves((args, kwargs))))
        named = dict(zip(model.outputs, outputs, strict=True))
        return Seen(named, self.seen, _axes(named, flat))

    def run_node(self, n: fx.Node) -> Any:
        if n in self._late:
            return None
        value = self._norm(n) if self._moving and n.target in _NORMS else super().run_node(n)
        if n.name in self._nodes:
            self.seen[n.name] = value
        stored = self._stored.get(n.name)
        return value if stored is None else _rounded(value, *stored)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if "device" in kwargs:  # where the graph was captured
            kwargs = {**kwargs, "device": self._device}
        read = self._read.get(n.all_input_nodes[0].name) if n.name in self._readers else None
        return (args, kwargs) if read is None else ((_rounded(args[0], *read), *args[1:]), kwargs)

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.map_arg(args, lambda a: self.get_attr(a.target, (), {}) if a in self._late else self._seen_by(n, a))

    def _seen_by(self, n: fx.Node, source: fx.Node) -> Any:
        """What `n` reads of a value; one that leaves the network is rounded for those only who take codes."""
        apart = self._apart.get(source.name)
        codes = apart is not None and read_as_codes(source, n, self._readers, self._leaves)
        return _rounded(self.env[source], *apart) if apart is not None and codes else self.env[source]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is aten.view.default:  # a view of what lies in another order
            target = aten.reshape.default
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self._value(str(target))
        found = super().get_attr(target, args, kwargs) if value is None else value
        return found.to(self._device) if isinstance(found, Tensor) else found

    def _norm(self, n: fx.Node) -> Any:
        x, gamma, beta, mean, var, *rest = self.fetch_args_kwargs_from_env(n)[0]
        whole = n.target is aten.batch_norm.default
        momentum, eps = rest[1:3] if whole else rest[:2]
        found = torch.nn.functional.batch_norm(x, mean, var, gamma, beta, True, momentum, eps)
        return found if whole else (found, None, None)


def _axes(outputs: Mapping[str, Tensor], flat: Sequence[Tensor]) -> dict[str, int | None]:
    """Where the classes of each output lie, told by the inputs."""
    like = [np.broadcast_to(np.zeros((), np.float32 if t.is_floating_point() else np.int64), t.shape) for t in flat]
    return {
        name: out.ndim - 1 if categorical(out, flat) else decision_axis(out.shape, like)
        for name, out in outputs.items()
        if out.ndim > 1
    }


def _whole(model: Model, shards: Shards) -> Model:
    if not shards.shapes:
        return model
    model = model.clone()
    shards.restore(model.module)
    return model


def _settle(model: Model, device: torch.device) -> None:
    """Bring a model to a device, laid out as it computes fastest."""
    model.module.to(device)
    for parameter in model.module.parameters():
        parameter.data = _laid(parameter.data)


def _laid(t: Tensor) -> Tensor:
    """Images and kernels with their channels last: what the matrix units of a GPU and the vector units of a CPU read."""
    return t.contiguous(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format)


def _positive(step: Tensor) -> Tensor:
    """A training may carry a step across zero; the largest of float32's smallest numbers stops it."""
    return step.abs().clamp_min(_LEAST)


def _rounded(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """`x` on the grid with this step; the step's gradient is made as small as its own size asks for, as its source says."""
    mild = (x[0].numel() * max(1, grid.high - grid.low)) ** -0.5
    step = step * mild + (step - step * mild).detach()
    code = x / step + grid.zero
    code = (code + (code.round() - code).detach()).clamp(grid.low, grid.high)
    return step * (code - grid.zero)
