"""Rules of the operators that multiply: linear, convolution, matrix products, attention, embedding, recurrent cells."""

from __future__ import annotations

from typing import Any

from torch import fx

from tersor.graph.labels import Axis
from tersor.graph.rules_elementwise import broadcast
from tersor.graph.trace import Args, Axes, NoRule, Rule, Trace, Value


def linear(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`y[..., r] = x[..., c] W[r, c] + b[r]`."""
    x, (rows, columns) = t.axes(a["input"]), t.axes(a["weight"])
    t.note(a["weight"], 0, "produces")
    t.note(a["weight"], 1, "reads")
    t.unify(x[-1], columns, node)
    _bias(t, node, a["bias"], rows)
    return (*x[:-1], rows)


def convolution(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`W[r, c / groups, kernel]`; with groups, whole groups and places inside every group are two families."""
    return _convolution(t, node, a, bool(a.get("transposed", False)))


def transposed_convolution(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`W[c, r / groups, kernel]`."""
    return _convolution(t, node, a, True)


def _convolution(t: Trace, node: fx.Node, a: Args, transposed: bool) -> Axes:
    x, weight = t.axes(a["input"]), t.axes(a["weight"])
    if len(x) != len(weight) or not isinstance(a["groups"], int):  # as many groups as items
        raise NoRule
    for axis in (*weight[2:], *x[2:]):
        t.freeze(axis, node, "reads every position of its kernel")
    groups = a["groups"]
    rows = _grouped(t, node, a["weight"], x[1], groups, transposed) if groups > 1 else None
    if rows is None:
        t.note(a["weight"], int(transposed), "produces")
        t.note(a["weight"], int(not transposed), "reads")
        t.unify(x[1], weight[0 if transposed else 1], node)
        rows = weight[1 if transposed else 0]
    _bias(t, node, a["bias"], rows)
    spatial = tuple(t.still(size, node, "lays it out as image positions") for size in t.shape(node)[2:])
    return (x[0], rows, *spatial)


def _grouped(t: Trace, node: fx.Node, weight: fx.Node, channels: Axis, groups: int, transposed: bool) -> Axis:
    outer, inner = t.axes(weight)[:2]
    group, place = t.split(channels, (groups, len(channels) // groups), node)
    group_too, other = t.split(outer, (groups, len(outer) // groups), node)
    t.unify(group, group_too, node)
    t.unify(place, other if transposed else inner, node)
    t.inner[node] = group
    if len(place) == 1:
        t.note(weight, 0, "carries")
    else:
        t.note(weight, int(transposed), "produces")
        t.note(weight, int(not transposed), "reads")
    return t.labels.merge([group, inner]) if transposed else outer


def _bias(t: Trace, node: fx.Node, bias: Any, rows: Axis) -> None:
    if bias is not None:
        t.note(bias, 0, "produces")
        t.unify(rows, t.axes(bias)[0], node)


def embedding(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Rows of a table, picked by an index that may be any of them."""
    vocabulary, width = t.axes(a["weight"])
    t.freeze(vocabulary, node, "may read any of its rows")
    t.note(a["weight"], 1, "produces")
    return (*t.axes(a["indices"]), width)


def matmul(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`y[..., i, k] = x[..., i, j] z[..., j, k]`."""
    return _product(t, node, *(a[name] for name in _operands(a)))


def addmm(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`input + x z`, batched or not."""
    first, second = [n for n in a if n.startswith(("mat", "batch"))][:2]
    return broadcast(t, node, [t.axes(a.get("self", a.get("input"))), _product(t, node, a[first], a[second])])


def weight_norm(t: Trace, node: fx.Node, a: Args) -> Axes:
    """`v * g / |v|`, the length over all axes but one: zeros add nothing to it, but along that one it would be zero."""
    v = t.axes(a["v"])
    for axis in (v[a["dim"] % len(v)], *t.axes(a["g"])):
        t.freeze(axis, node, "divides by the length of every slice")
    return v


def _operands(a: Args) -> tuple[str, str]:
    return ("self", "other") if "other" in a else ("self", "mat2")


def einsum(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Letters that are the same are one axis."""
    operands, output = subscripts(a)
    if not operands:
        raise NoRule
    axes: dict[str, Axis] = {}
    for letters, each in operands:
        for d, (letter, axis) in enumerate(zip(letters, t.axes(each), strict=True)):
            if len(axes.setdefault(letter, axis)) != len(axis) or letters.count(letter) > 1:
                raise NoRule
            t.unify(axes[letter], axis, node)
            t.note(each, d, "produces" if letter in output else "reads")
    return tuple(axes[letter] for letter in output)


def subscripts(a: Args) -> tuple[list[tuple[str, fx.Node]], str]:
    """The letters of every operand of an einsum, and those of its result; nothing where they are not spelled out."""
    inputs, arrow, output = a["equation"].replace(" ", "").partition("->")
    if not arrow or "." in inputs:
        return [], ""
    return list(zip(inputs.split(","), a["tensors"], strict=True)), output


def _product(t: Trace, node: fx.Node, first: fx.Node, second: fx.Node) -> Axes:
    x, y = t.axes(first), t.axes(second)
    if not x or not y:
        raise NoRule
    if len(y) >= 2:
        t.note(second, len(y) - 2, "reads")
        t.note(second, len(y) - 1, "produces")
    inner = y[-2] if len(y) >= 2 else y[-1]
    t.unify(x[-1], inner, node)
    batch = broadcast(t, node, [x[:-2], y[:-2]])
    return (*batch, *(x[-2:-1] if len(x) >= 2 else ()), *(y[-1:] if len(y) >= 2 else ()))


def attention(t: Trace, node: fx.Node, a: Args) -> Axes:
    """Scaled dot-product attention: q and k share a width, k and v a length, all three the heads."""
    q, k, v = (t.axes(a[name]) for name in ("query", "key", "value"))
    if not len(q) == len(k) == len(v) >= 3:
        raise NoRule
    t.unify(q[-1], k[-1], node)
    t.unify(k[-2], v[-2], node)
    t.freeze(k[-2], node, "attends to every position")
    batch = broadcast(t, node, [k[:-2], v[:-2]])
    if a.get("enable_gqa") and len(q) == 4 and len(q[1]) != len(k[1]):
        shared, _ = t.split(q[1], (len(k[1]), len(q[1]) // len(k[1])), node)
        t.unify(shared, k[1], node)
        batch = (*broadcast(t, node, [q[:1], batch[:1]]), q[1])
    else:
        batch = broadcast(t, node, [q[:-2], batch])
    out = (*batch, q[-2], v[-1])
    if t.is_tensor(a.get("attn_mask")):
        scores = (*batch, q[-2], k[-2])
        mask = t.axes(a["attn_mask"])
        broadcast(t, node, [scores, mask])
    return out


def recurrent(gates: int) -> Rule:
    """LSTM (4 gates), GRU (3) and plain cells (1) on the whole operator.

    The stacked initial state ties the width of all layers and directions.
    """

    def rule(t: Trace, node: fx.Node, a: Args) -> Value:
        states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
        if len({len(t.axes(state)[-1]) for state in states}) > 1:
            raise NoRule  # projections
        hidden = t.axes(states[0])[-1]
        for state in states:
            t.unify(hidden, t.axes(state)[-1], node)
            t.freeze(t.axes(state)[0], node, "needs the state of every layer")
        directions = 2 if a["bidirectional"] else 1
        each = 4 if a["has_biases"] else 2
        params = list(a["params"])
        if len(params) != each * directions * a["num_layers"]:
            raise NoRule  # projections
        x = t.axes(a["input"])
        features = x[-1]
        for layer in range(a["num_layers"]):
            for direction in range(directions):
                at = (layer * directions + direction) * each
                _cell(t, node, params[at : at + each], features, hidden, gates)
            features = hidden * directions
        out = (*x[:-1], features)
        return (out, *(t.axes(state) for state in states))

    return rule


def _cell(t: Trace, node: fx.Node, params: list[fx.Node], features: Axis, hidden: Axis, gates: int) -> None:
    for param in params:
        gate, unit = t.split(t.axes(param)[0], (gates, len(hidden)), node)
        t.freeze(gate, node, "needs every gate")
        t.unify(unit, hidden, node)
        t.note(param, 0, "produces")
    t.unify(t.axes(params[0])[1], features, node)
    t.unify(t.axes(params[1])[1], hidden, node)
    for param in params[:2]:
        t.note(param, 1, "reads")


MATRIX: dict[str, Rule] = {
    "aten.linear": linear,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.conv3d": convolution,
    "aten.convolution": convolution,
    "aten.conv_transpose1d": transposed_convolution,
    "aten.conv_transpose2d": transposed_convolution,
    "aten.conv_transpose3d": transposed_convolution,
    "aten.embedding": embedding,
    "aten.matmul": matmul,
    "aten.mm": matmul,
    "aten.bmm": matmul,
    "aten._weight_norm": weight_norm,
    "aten.einsum": einsum,
    "aten.addmm": addmm,
    "aten.baddbmm": addmm,
    "aten.scaled_dot_product_attention": attention,
    "aten.lstm": recurrent(4),
    "aten.gru": recurrent(3),
    "aten.rnn_tanh": recurrent(1),
    "aten.rnn_relu": recurrent(1),
}
