"""Matrix products with a parameter, however they were written, become linear layers while a model is captured.

`x @ W`, `W @ x`, `addmm`, `mv`, `inner`, `tensordot` and `einsum` are one thing: letters for the axes of what is read, of the
parameter and of the result. Letters that only the parameter and the result have are rows, those that are summed are columns;
what is read is turned so that the columns stand last. A letter that all three have (a batch of matrices) is no linear layer.
The turned parameter is computed in the graph; `computed.settle` makes a parameter of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from string import ascii_letters
from typing import Any

from torch import Tensor, fx

from tersor.graph.arguments import bound, operator_name
from tersor.graph.emit import emit
from tersor.graph.operators import aten, constants

_ADDED = ("aten.addmm", "aten.addmv")


@dataclass(frozen=True)
class Product:
    """`out[...] = sum x[...] w[...]` by letters."""

    x: fx.Node
    w: fx.Node
    letters_x: str
    letters_w: str
    out: str


def straighten(module: fx.GraphModule) -> None:
    """Write, in place, every product of an activation and a parameter as `aten.linear`. The same is computed."""
    known = _Known(constants(module))
    for node in list(module.graph.nodes):
        if node.op == "call_function" and rank(node):
            product = known.product(node, bound(node))
            if product is not None and _plain(product):
                _written(node, product, known.fixed)


@dataclass(frozen=True)
class _Known:
    """fixed: the values that no call changes, and whether parameters are in them."""

    fixed: dict[fx.Node, bool]

    def product(self, node: fx.Node, a: dict[str, Any]) -> Product | None:
        """What `node` multiplies, where that is an activation and a parameter."""
        name = operator_name(node)
        if name in _ADDED:
            first, second = _factors(a)
            return self._ordered(first, second, *_matmul(rank(first), rank(second)))
        if name in ("aten.matmul", "aten.mm", "aten.mv"):
            first, second = a["self"], next(a[word] for word in ("other", "mat2", "vec") if word in a)
            return self._ordered(first, second, *_matmul(rank(first), rank(second)))
        if name == "aten.linear" and rank(a["weight"]) == 1:
            return self._ordered(a["input"], a["weight"], *_matmul(rank(a["input"]), 1))
        if name == "aten.linear" and a["input"] in self.fixed and a["bias"] is None and rank(a["weight"]) == 2:
            lead = ascii_letters[3 : 2 + rank(a["input"])]
            return self._ordered(a["input"], a["weight"], lead + "c", "bc", lead + "b")
        if name == "aten.inner":
            return self._ordered(a["self"], a["other"], *_inner(rank(a["self"]), rank(a["other"])))
        if name == "aten.tensordot":
            return self._ordered(a["self"], a["other"], *_tensordot(a))
        if name == "aten.einsum" and len(a["tensors"]) == 2:
            found = spelled(a["equation"], [rank(each) for each in a["tensors"]])
            first, second = a["tensors"]
            return None if found is None else self._ordered(first, second, *found)
        return None

    def _ordered(self, first: fx.Node, second: fx.Node, of_first: str, of_second: str, out: str) -> Product | None:
        """The product with its parameter as the second factor; None where none or both are made of parameters."""
        if 0 in (rank(first), rank(second)) or (len(of_first), len(of_second)) != (rank(first), rank(second)):
            return None
        if self.fixed.get(second) and first not in self.fixed:
            return Product(first, second, of_first, of_second, out)
        if self.fixed.get(first) and second not in self.fixed:
            return Product(second, first, of_second, of_first, out)
        return None


def _factors(a: dict[str, Any]) -> tuple[fx.Node, fx.Node]:
    return (a["mat1"], a["mat2"]) if "mat1" in a else (a["mat"], a["vec"])


def _matmul(m: int, n: int) -> tuple[str, str, str]:
    lead = ascii_letters[3 : 1 + max(m, n, 2)]
    first = "c" if m == 1 else lead[len(lead) - m + 2 :] + "ac"
    second = "c" if n == 1 else lead[len(lead) - n + 2 :] + "cb"
    return first, second, lead + "a" * (m > 1) + "b" * (n > 1)


def _inner(m: int, n: int) -> tuple[str, str, str]:
    first, second = ascii_letters[1:m], ascii_letters[m : m + n - 1]
    return first + "a", second + "a", first + second


def _tensordot(a: dict[str, Any]) -> tuple[str, str, str]:
    m = rank(a["self"])
    first, second = list(ascii_letters[:m]), list(ascii_letters[m : m + rank(a["other"])])
    for i, j in zip(a["dims_self"], a["dims_other"], strict=True):
        second[j] = first[i]
    summed = {first[i] for i in a["dims_self"]}
    out = [letter for letter in (*first, *second) if letter not in summed]
    return "".join(first), "".join(second), "".join(out)


def spelled(equation: str, ranks: Sequence[int]) -> tuple[str, str, str] | None:
    """The letters of an einsum of two operands and of its result, with letters for its dots."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    unused = [letter for letter in ascii_letters if letter not in equation]
    dots = [rank - len(each) + 3 if "..." in each else 0 for each, rank in zip((first, second), ranks, strict=True)]
    if not second or min(dots) < 0 or max(dots) > len(unused):
        return None
    common = unused[: max(dots)]
    first, second = (
        each.replace("...", "".join(common[len(common) - count :]))
        for each, count in zip((first, second), dots, strict=True)
    )
    if arrow:
        out = out.replace("...", "".join(common))
    else:
        once = sorted(letter for letter in first + second if (first + second).count(letter) == 1)
        out = "".join(common) + "".join(letter for letter in once if letter not in common)
    return first, second, out


def _plain(p: Product) -> bool:
    """Whether one matrix is applied to every position of x."""
    x, w, out = set(p.letters_x), set(p.letters_w), set(p.out)
    once = all(len(set(letters)) == len(letters) for letters in (p.letters_x, p.letters_w, p.out))
    ones = {letter for letter, size in zip(p.letters_w, _shape(p.w), strict=True) if size == 1}
    summed, batch = (x & w) - out, (x & w & out) - ones
    whole = x - w <= out and w - x <= out and out <= x | w
    return once and whole and bool(summed) and not batch and x != summed


def _linear(node: fx.Node, p: Product) -> fx.Node:
    """The nodes before `node` that compute the product, and the last of them."""
    sizes = dict(zip(p.letters_w, _shape(p.w), strict=True))
    beside = [letter for letter in p.letters_w if letter in p.letters_x and letter in p.out]  # of size one
    free = [letter for letter in p.letters_x if letter in p.out]
    summed = [letter for letter in p.letters_x if letter not in p.out]
    rows = [letter for letter in p.out if letter not in p.letters_x]
    shape = [prod(sizes[letter] for letter in rows), prod(sizes[letter] for letter in summed)]
    weight = _turned(node, p.w, p.letters_w, [*beside, *rows, *summed])
    if _shape(weight) != tuple(shape):
        weight = emit(node, aten.reshape.default, weight, shape)
    x = _turned(node, p.x, p.letters_x, [*free, *summed])
    if len(summed) > 1:
        x = emit(node, aten.flatten.using_ints, x, -len(summed), -1)
    value = emit(node, aten.linear.default, x, weight)
    if not rows:
        value = emit(node, aten.squeeze.dim, value, -1)
    elif len(rows) > 1:
        value = emit(node, aten.unflatten.int, value, -1, [sizes[letter] for letter in rows])
    return _turned(node, value, "".join([*free, *rows]), list(p.out))


def _turned(node: fx.Node, value: fx.Node, letters: str, wanted: Sequence[str]) -> fx.Node:
    order = [letters.index(letter) for letter in wanted]
    return value if order == sorted(order) else emit(node, aten.permute.default, value, order)


def _written(node: fx.Node, product: Product, fixed: dict[fx.Node, bool]) -> None:
    value = _linear(node, product)
    if operator_name(node) in _ADDED:
        a = bound(node)
        value = _with_addend(node, value, a["self"], a["alpha"], a["beta"])
    elif bound(node).get("bias") is not None:
        value = emit(node, aten.add.Tensor, value, bound(node)["bias"])
    _take_place(node, value)
    addition = value if value.target is aten.add.Tensor else next(iter(value.users), None)
    if addition is not None:
        _absorb(addition, fixed)


def _with_addend(node: fx.Node, value: fx.Node, addend: fx.Node, alpha: float, beta: float) -> fx.Node:
    if alpha != 1:
        value = emit(node, aten.mul.Tensor, value, alpha)
    if beta == 0:
        return value
    return emit(node, aten.add.Tensor, value, addend if beta == 1 else emit(node, aten.mul.Tensor, addend, beta))


def _absorb(addition: fx.Node, fixed: dict[fx.Node, bool]) -> None:
    """A vector of parameters that is added to a linear layer, and to it alone, becomes its bias."""
    if addition.target is not aten.add.Tensor or addition.kwargs or len(addition.all_input_nodes) != 2:
        return
    linear, bias = addition.args if addition.args[1] in fixed else addition.args[::-1]
    if not (isinstance(linear, fx.Node) and isinstance(bias, fx.Node) and linear.target is aten.linear.default):
        return
    rows, wide = _shape(linear)[-1], _shape(bias)
    alone = len(linear.users) == 1 and len(linear.args) == 2 and fixed.get(bias, False)
    if not alone or wide[-1:] != (rows,) or prod(wide) != rows or len(wide) > rank(linear):
        return
    if len(wide) > 1:
        bias = emit(addition, aten.reshape.default, bias, [rows])
    value = emit(addition, aten.linear.default, *linear.args, bias)
    _take_place(addition, value)
    linear.graph.erase_node(linear)


def _take_place(node: fx.Node, value: fx.Node) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def rank(node: Any) -> int:
    return len(_shape(node))


def _shape(node: Any) -> tuple[Any, ...]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()
