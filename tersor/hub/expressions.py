"""Size expressions of exported programs: arithmetic on numbers and symbols, small enough to be worked out at once.

`torch.export.load` gives every such string to sympy, which evaluates it as Python. So only calls of the functions that
torch writes pass, and before anything is evaluated a bound is computed on how large it could become: the number of terms
once products and powers are multiplied out, and the bits of its numbers. `9**9**9**9` has five digits and no end.
"""

from __future__ import annotations

import ast
import re

_LONGEST = 4000  # characters
_PARTS = 600  # nodes of the syntax tree
_TERMS, _BITS = 256, 256
_POWER = 64  # the largest exponent and shift
_SYMBOL = re.compile(r"(z?[usf]|zuf)\d{1,6}", re.ASCII)
_NAMES = re.compile(r"(z?[usf]|zuf)\d{1,6}|oo|int_oo|true|false|nan", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{0,20})?(e[+-]?\d{1,3})?", re.ASCII)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SUMS = frozenset(("Add", "Max", "Min"))
_PRODUCTS = frozenset(("Mul",))
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift", "RShift"))
_FUNCTIONS = _words(
    """
    FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv
    IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat
    Identity Symbol Integer Float Rational Abs Eq Ne Lt Le Gt Ge And Or Not
    """
)
_ASSUMPTIONS = _words(
    """
    positive integer nonnegative negative nonpositive real finite even odd prime
    """
)
_SMALL_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_SIGNS = (ast.UAdd, ast.USub, ast.Not, ast.Invert)

_Size = tuple[int, int]
"""(terms, bits) that an expression has at most."""


class _Refused(Exception):
    """It is no arithmetic, or too much of it."""


def is_symbol(text: str) -> bool:
    """Whether `text` is a symbol as torch names them (s77, u0). Six digits: torch counts up to the number of a `u`."""
    return _SYMBOL.fullmatch(text) is not None


def is_arithmetic(text: str) -> bool:
    """Whether a size expression is nothing but arithmetic whose value is small, whatever its symbols stand for."""
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
        if sum(1 for _ in ast.walk(tree)) > _PARTS:
            return False
        _size(tree.body)
    except (_Refused, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _size(node: ast.expr) -> _Size:
    match node:
        case ast.Constant(value=bool()):
            found = 1, 1
        case ast.Constant(value=int(value)):
            found = 1, max(1, value.bit_length())
        case ast.Constant(value=float()):
            found = 1, 64
        case ast.Name(id=name) if _NAMES.fullmatch(name):
            found = 1, 1
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _SIGNS):
            found = _size(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            found = _power(left, right)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _SMALL_OPERATORS):
            found = _product([left, right]) if isinstance(op, ast.Mult) else _sum([left, right])
        case ast.Compare(left=left, comparators=others):
            found = _sum([left, *others])
        case ast.BoolOp(values=values):
            found = _sum(values)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            found = _called(name, args, keywords)
        case _:
            raise _Refused
    if found[0] > _TERMS or found[1] > _BITS:
        raise _Refused
    return found


def _called(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> _Size:
    if name in ("Symbol", "Float"):
        return _named(name, args, keywords)
    if keywords or not args:
        raise _Refused
    if name in _POWERS and len(args) == 2:
        return _power(*args)
    if name in _PRODUCTS:
        return _product(args)
    if name in _SUMS or name in _FUNCTIONS:
        return _sum(args)
    raise _Refused


def _named(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> _Size:
    """The two that take a string: a symbol's name, and a number's digits."""
    pattern = _SYMBOL if name == "Symbol" else _NUMBER
    match args:
        case [ast.Constant(value=str(text))] if pattern.fullmatch(text):
            pass
        case [ast.Constant(value=int() | float())] if name == "Float":
            pass
        case _:
            raise _Refused
    for each in keywords:
        match each.value:
            case ast.Constant(value=bool()) if name == "Symbol" and each.arg in _ASSUMPTIONS:
                pass
            case ast.Constant(value=int(value)) if name == "Float" and each.arg == "precision" and 0 < value <= 256:
                pass
            case _:
                raise _Refused
    return (1, 1) if name == "Symbol" else (1, 64)


def _sum(parts: list[ast.expr]) -> _Size:
    sizes = [_size(part) for part in parts]
    return sum(terms for terms, _ in sizes), max(bits for _, bits in sizes) + len(sizes).bit_length()


def _product(parts: list[ast.expr]) -> _Size:
    terms, bits = 1, 0
    for part in parts:
        more = _size(part)
        terms, bits = min(terms * more[0], _TERMS + 1), bits + more[1]
    return terms, bits


def _power(base: ast.expr, exponent: ast.expr) -> _Size:
    terms, bits = _size(base)
    times = _whole(exponent)
    if times is None:  # two to the power of a symbol, say: nothing is multiplied out
        if _size(exponent) != (1, 1) or isinstance(base, ast.Call | ast.BinOp):
            raise _Refused
        return terms, bits
    if abs(times) > _POWER:
        raise _Refused
    return (1 if terms == 1 else min(terms, _TERMS) ** min(abs(times), 9)), max(bits * abs(times), bits + abs(times))


def _whole(node: ast.expr) -> int | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case ast.Constant(value=int(value)):
            return value
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _whole(inner)
        case ast.Call(func=ast.Name(id="Rational"), args=[ast.Constant(value=int(value)), ast.Constant(value=int())]):
            return value
        case _:
            return None
