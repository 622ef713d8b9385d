"""What an exported program's file (.pt2) may hold: plain data, and nothing that could run code or take endless memory.

`torch.export.load` unpickles whatever an archive says is pickled, resolves operator names by walking from `torch` (which
reaches `torch.os.system`) and evaluates size expressions; the graph is compiled from its names when it is called. So
everything is looked at before: raw tensors of the size of the file, ATen operators, arithmetic, names.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tersor.errors import ArtifactError

_FILES = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/[\w.]+"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|prim|quantized_decomposed)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|scan|map_impl|while_loop)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(float|int|max|min|not|ite|sqrt|sum)|torch\._sym_\w+"
    # not attrgetter, methodcaller and call: together they reach everything
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_FUNCTIONS = re.compile(
    "FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|"
    "FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|"
    "ToFloat|Identity|Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
)
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Constant, ast.Name, ast.Call, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context),
)
_STRUCTURES = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.Size"))
_NAME = re.compile(r"[\w.,:+\- /<>\[\]%*]*")
_FREE = frozenset(
    # provenance, which nothing evaluates; guards_code is dropped unread; as_string is quoted wherever it is used
    ("from_node", "stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "custom", "metadata", "guards_code")
) | {"as_string", "as_strings"}


def screen(path: Path) -> dict[str, str]:
    """The extra files of an archive that holds only plain data; raises `ArtifactError` naming what is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_members(path, archive)
    except FileNotFoundError as cause:
        raise ArtifactError(f"{path.name} is missing; export the model again.") from cause
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError, RecursionError) as cause:
        raise ArtifactError(f"{path.name} is damaged or no exported program ({cause}); export it again.") from cause


def _check_members(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if not _FILES.fullmatch(name) or name in members:
            raise _refused(path, f"the member {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _refused(path, f"the compressed member {info.filename!r}")
        members[name] = info
    if sum(info.file_size for info in members.values()) > path.stat().st_size:
        raise _refused(path, "members larger than the file")
    if damaged := archive.testzip():
        raise ArtifactError(f"{path.name} is damaged: the checksum of {damaged} does not match; export it again.")
    for kind in ("weights", "constants"):
        name = f"data/{kind}/model_{kind}_config.json"
        _check_tensors(path, json.loads(archive.read(members[name])), path.stat().st_size)
    _check_graph(path, json.loads(archive.read(members["models/model.json"])))
    _check_sample(path, archive.read(members["data/sample_inputs/model.pt"]))
    return {n[len("extra/") :]: archive.read(i).decode() for n, i in members.items() if n.startswith("extra/")}


def _check_tensors(path: Path, config: dict[str, Any], size: int) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or entry["tensor_meta"] is None:
            raise _refused(path, f"the pickled tensor {name!r}")
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise _refused(path, f"the object {name!r}")
        values = math.prod(s["as_int"] for s in entry["tensor_meta"]["sizes"])
        if values > 16 * size + (1 << 20):  # strides of zero may repeat some values, but not without end
            raise _refused(path, f"{values} values for {name!r} in a file of {size} bytes")


def _check_graph(path: Path, graph: dict[str, Any]) -> None:
    for key, text in _strings(graph, ""):
        if key == "target":
            plain = _OPERATORS.fullmatch(text) is not None
        elif key == "expr_str":
            plain = is_arithmetic(text)
        elif key in ("in_spec", "out_spec"):
            plain = not text or all(kind in _STRUCTURES for k, kind in _strings(json.loads(text), "") if k == "type")
        else:
            plain = key in _FREE or _NAME.fullmatch(text) is not None
        if not plain:
            raise _refused(path, f"{key} {text[:60]!r}")


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every string of a JSON value with the key it stands under; keys are names as well."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield "name", name
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def is_arithmetic(text: str) -> bool:
    """Whether a size expression holds nothing but numbers, symbols, and calls of the functions that torch writes."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    called = {id(n.func) for n in nodes if isinstance(n, ast.Call)}
    return all(isinstance(n, _ARITHMETIC) and _is_plain(n, id(n) in called) for n in nodes)


def _is_plain(node: ast.AST, called: bool) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.Name):
        return bool((_FUNCTIONS if called else re.compile(r"[a-z]{1,2}\d+|oo|int_oo")).fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float) or (
            isinstance(node.value, str) and bool(re.fullmatch(r"\w*", node.value))
        )
    return True


def _check_sample(path: Path, data: bytes) -> None:
    """Example inputs are the one pickle in an archive: it must load as tensors only, or not at all."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in inner.infolist())
            if not stored or sum(info.file_size for info in inner.infolist()) > len(data):
                raise _refused(path, "compressed example inputs")
        torch.load(io.BytesIO(data), weights_only=True)
    except ArtifactError:
        raise
    except Exception as cause:
        raise _refused(path, "example inputs that are not plain tensors") from cause


def _refused(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path.name} holds {what}, which is no plain data and could run code; "
        "export the model again with torch.export.save."
    )
