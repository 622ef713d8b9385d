"""Read a `torch.export` archive (.pt2) without letting it run code or take more memory than its size explains.

`torch.export.load` unpickles payloads that ask for it, evaluates the archive's shape expressions with sympy and
resolves any name below `torch.` as an operator. So an archive is screened before torch sees it: plain stored members,
no pickled payload, operators of known namespaces only, shape expressions of numbers, symbols and torch's own functions.
"""

from __future__ import annotations

import ast
import json
import math
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from tersor.errors import ModelError

_NAMESPACES = "aten|prims|prim|higher_order|quantized_decomposed|torchao|torchvision"
_OPERATOR = re.compile(
    rf"torch\.ops\.(?:{_NAMESPACES})\.\w+(?:\.\w+)?|torch\.ops\.higher_order\.\w+|torch\._?sym_\w+|math\.(?:ceil|floor|trunc)"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FUNCTIONS = re.compile(
    "FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|"
    "FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|"
    "ToFloat|Identity|Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
)
_EXPRESSION = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Constant, ast.Name, ast.Call, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)
_STRUCTURES = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size"))
_PLAIN = re.compile(r"[\w.+\-:/ ]*")
_FREE = ("metadata", "as_string", "as_strings", "in_spec", "out_spec", "expr_str", "guards_code", "target")


def read(path: Path) -> ExportedProgram:
    """The exported program in `path`. Raises `ModelError` where the archive is damaged or could run code."""
    import torch

    if not path.is_file():
        raise ModelError(f"There is no file '{path}'.")
    try:
        _screen(path)
        program = torch.export.load(str(path))
    except ModelError:
        raise
    except Exception as cause:
        text = " ".join(str(cause).split())[:200]
        raise ModelError(
            f"'{path}' cannot be read as a torch.export archive ({type(cause).__name__}: {text}); "
            "write it with torch.export.save, in the torch version that is installed here."
        ) from cause
    program._guards_code = []  # strings that torch would otherwise compile
    return program


def _screen(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size, str(path))
        if members.get("archive_format") is None or archive.read(members["archive_format"]) != b"pt2":
            raise ModelError(f"'{path}' is no torch.export archive (no archive_format 'pt2'); use torch.export.save.")
        for name, member in members.items():
            if re.fullmatch(r"models/.*\.json", name):
                _screen_graph(json.loads(archive.read(member)), str(path))
            elif re.fullmatch(r"data/(weights|constants)/.*config\.json", name):
                _screen_payloads(json.loads(archive.read(member)), members, str(path))
            elif re.fullmatch(r"data/sample_inputs/.*", name):
                _screen_sample(archive.read(member), str(path))
            elif name.endswith((".pt", ".so")) or re.search(r"(^|/)(aotinductor|executorch|mtia)/", name):
                raise ModelError(
                    f"'{path}' holds '{name}', which can run code; export the model with torch.export.save."
                )


def _members(archive: zipfile.ZipFile, size: int, where: str) -> dict[str, str]:
    names = [i.filename for i in archive.infolist()]
    packed = any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist())
    if packed or sum(i.file_size for i in archive.infolist()) > size or len(set(names)) != len(names):
        raise ModelError(
            f"'{where}' declares more bytes than it holds, or the same file twice; it is damaged or hostile."
        )
    return {name.partition("/")[2]: name for name in names}


def _screen_payloads(config: dict[str, Any], members: dict[str, str], where: str) -> None:
    for name, payload in config["config"].items():
        if payload.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise ModelError(
                f"'{where}': '{name}' is stored as a pickle, which can run code (quantised or custom tensors are); "
                "export the float32 model."
            )
        sizes = [s.get("as_int", 0) for s in payload["tensor_meta"]["sizes"]]
        if math.prod(sizes) > 1 << 34:
            raise ModelError(f"'{where}': '{name}' declares {sizes} values, more than Tersor opens.")


def _screen_sample(content: bytes, where: str) -> None:
    import torch

    if not content:
        return
    try:
        with zipfile.ZipFile(BytesIO(content)) as inner:
            _members(inner, len(content), where)
        torch.load(BytesIO(content), weights_only=True, map_location="meta")
    except ModelError:
        raise
    except Exception as cause:
        raise ModelError(
            f"'{where}': its example inputs hold more than tensors; export it with plain tensors."
        ) from cause


def _screen_graph(graph: dict[str, Any], where: str) -> None:
    for key, value in _strings(graph, ""):
        if key == "target" and not _OPERATOR.fullmatch(value):
            raise ModelError(
                f"'{where}' uses '{value[:80]}', which is no operator that Tersor opens; "
                "build the model in Python and bring it as file.py:function."
            )
        if key == "expr_str" and not _is_arithmetic(value):
            raise ModelError(f"'{where}' holds a shape expression that is no arithmetic: '{value[:80]}'.")
        if key in ("in_spec", "out_spec") and value and not _is_structure(value):
            raise ModelError(
                f"'{where}' takes or gives structures other than tuples, lists and dicts; export it without."
            )
        if key not in _FREE and not _PLAIN.fullmatch(value):
            raise ModelError(
                f"'{where}' holds the name '{value[:80]}', which torch never writes; it is damaged or hostile."
            )


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            inner = key if key in ("metadata", "guards_code") else name
            if inner not in _FREE:
                yield "", name
            yield from _strings(each, inner)


def _is_arithmetic(text: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    calls = {id(n.func): n for n in nodes if isinstance(n, ast.Call)}
    for node in nodes:
        if not isinstance(node, _EXPRESSION):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id)):
            return False
        if (
            isinstance(node, ast.Name)
            and id(node) not in calls
            and not re.fullmatch(r"[a-z]{1,2}\d+|oo|int_oo", node.id)
        ):
            return False
        if isinstance(node, ast.Constant) and not _is_symbol_or_number(node.value):
            return False
    return True


def _is_symbol_or_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(re.fullmatch(r"\w*\d*", value)))


def _is_structure(text: str) -> bool:
    kinds = (value for key, value in _strings(json.loads(text), "") if key == "type")
    return all(kind in _STRUCTURES for kind in kinds)
