"""Recurrent layers of a graph: which parameters belong to which layer and direction, and what their cells read.

A node applies several layers, each in one or two directions. Gates are affine in what they read, `W_ih x_t + b_ih` and
`W_hh h_{t-1} + b_hh`, before anything nonlinear: two matrices for each layer and direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tersor.graph.model import Model
from tersor.graph.operators import argument, aten

_VF = torch._VF
_CELLS = {
    aten.lstm.input: _VF.lstm,
    aten.gru.input: _VF.gru,
    aten.rnn_tanh.input: _VF.rnn_tanh,
    aten.rnn_relu.input: _VF.rnn_relu,
}


@dataclass(frozen=True)
class Cell:
    """One direction of one layer, by names of parameters; `biases` is empty where there are none."""

    weights: tuple[str, str]  # of what it reads (gates * hidden, c), of its own state (gates * hidden, hidden)
    biases: tuple[str, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.weights, *self.biases)


@dataclass(frozen=True)
class Recurrence:
    """One node. layers: the cells of each layer, backward last."""

    node: str
    layers: tuple[tuple[Cell, ...], ...]
    batch_first: bool

    def states(self, layer: int, x: Tensor, start: tuple[Tensor, ...], model: Model) -> tuple[Tensor, list[Tensor]]:
        """Of a layer: what it gives, (items, steps, hidden * directions), and for each direction the state that is read at
        each step, (items, steps, hidden).

        x: (items, steps, c); start: the initial states of all layers, (layers * directions, items, hidden) each.
        """
        cells = self.layers[layer]
        several = slice(layer * len(cells), (layer + 1) * len(cells))
        begin = [s[several].contiguous() for s in start]
        parameters = [model.tensor(name) for cell in cells for name in cell.parameters]
        run = _CELLS[_node(model, self.node).target]
        settings = (bool(cells[0].biases), 1, 0.0, False, len(cells) == 2, True)
        given = run(x, begin if len(begin) > 1 else begin[0], parameters, *settings)[0]
        read = []
        for direction, part in enumerate(given.chunk(len(cells), 2)):
            first = begin[0][direction][:, None]
            pair = (part[:, 1:], first) if direction else (first, part[:, :-1])
            read.append(torch.cat(pair, 1))
        return given, read

    def gated(self, model: Model) -> bool:
        """Whether the last third of the state's gates is multiplied before it is added (GRU)."""
        return _node(model, self.node).target is aten.gru.input


def recurrences(model: Model) -> tuple[Recurrence, ...]:
    """The recurrent nodes of `model` whose weights are parameters, without projections; in execution order."""
    found = (recurrence_of(node) for node in model.graph.nodes)
    return tuple(r for r in found if r is not None)


def recurrence_of(node: fx.Node) -> Recurrence | None:
    if node.op != "call_function" or node.target not in _CELLS:
        return None
    params = argument(node, 2, "params", ())
    biased, layers = argument(node, 3, "has_biases", True), argument(node, 4, "num_layers", 1)
    directions = 2 if argument(node, 7, "bidirectional", False) else 1
    each = 4 if biased else 2
    if len(params) != each * directions * layers or any(p.op != "get_attr" for p in params):
        return None
    names = [str(p.target) for p in params]
    cells = [Cell((names[i], names[i + 1]), tuple(names[i + 2 : i + each])) for i in range(0, len(names), each)]
    by_layer = tuple(tuple(cells[i : i + directions]) for i in range(0, len(cells), directions))
    return Recurrence(node.name, by_layer, bool(argument(node, 8, "batch_first", False)))


def start_of(states: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The initial states, one tensor for each kind of state."""
    return (states,) if isinstance(states, Tensor) else tuple(states)


def _node(model: Model, name: str) -> fx.Node:
    return next(node for node in model.graph.nodes if node.name == name)
