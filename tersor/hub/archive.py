"""Exported programs (.pt2) on disk: the same model gives the same bytes, and no file that is read can run code.

`torch.export.load` unpickles whatever an archive says is pickled, resolves operator names by walking from `torch`
(which reaches `torch.os.system`) and evaluates size expressions. Here an archive is opened only after everything in it
has been seen to be plain: raw tensors, ATen operators, arithmetic.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tersor.errors import ArtifactError

_FILES = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/[\w.]+"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
_OPERATORS = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_EXPRESSION = re.compile(r"([\w\s+*/%<>=!&|~,().-]|'\w+')*")
_WORD = re.compile(
    r"[a-z]+\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CeilDiv|ModularIndexing|PythonMod|CleanDiv"
    r"|Eq|Ne|Le|Lt|Ge|Gt|And|Or|Not|Where|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|FloorToInt|CeilToInt|RoundToInt"
    r"|Abs|Identity|positive|negative|integer|nonnegative|nonzero|real|finite|zero|True|False|oo|int_oo|evaluate"
)
_NAME = re.compile(r"[\w.,:+\- /<>\[\]%*]*")
_DROPPED_META = ("from_node", "stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "custom")
_FREE = frozenset((*_DROPPED_META, "guards_code", "as_string"))


def save_program(program: ExportedProgram, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """Write `program` without the traces of where it was made; its example inputs become zeros."""
    for node in program.graph.nodes:
        for key in _DROPPED_META:
            node.meta.pop(key, None)
    program.example_inputs = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), program.example_inputs
    )
    torch.export.save(program, path, extra_files=dict(extra or {}))


def load_program(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """The program in `path` and its extra files. Raises `ArtifactError` where the archive is damaged or holds code."""
    extra = check_archive(path)
    try:
        return torch.export.load(path), extra
    except Exception as cause:
        raise ArtifactError(f"{path.name} cannot be read as an exported program ({cause}); export it again.") from cause


def check_archive(path: Path) -> dict[str, str]:
    """The extra files of an archive that holds only plain data; raises `ArtifactError` naming what is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_members(path, archive)
    except FileNotFoundError as cause:
        raise ArtifactError(f"{path.name} is missing; export the model again.") from cause
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RecursionError) as cause:
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
        _check_tensors(path, json.loads(archive.read(members[name])), members)
    _check_graph(path, json.loads(archive.read(members["models/model.json"])))
    _check_sample(path, archive.read(members["data/sample_inputs/model.pt"]))
    return {n[len("extra/") :]: archive.read(i).decode() for n, i in members.items() if n.startswith("extra/")}


def _check_tensors(path: Path, config: dict, members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or entry["tensor_meta"] is None:
            raise _refused(path, f"the pickled tensor {name!r}")
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise _refused(path, f"the object {name!r}")


def _check_graph(path: Path, graph: dict) -> None:
    for key, text in _strings(graph, ""):
        if key == "target":
            plain = _OPERATORS.fullmatch(text) is not None
        elif key == "expr_str":
            words = re.findall(r"[A-Za-z_]\w*", text)
            plain = _EXPRESSION.fullmatch(text) is not None and all(_WORD.fullmatch(word) for word in words)
        elif key in ("in_spec", "out_spec"):
            plain = "__enum__" not in text and "default_factory" not in text
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


def _check_sample(path: Path, data: bytes) -> None:
    """Example inputs are the one pickle in an archive: it must load as tensors only, or not at all."""
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        if any(info.compress_type != zipfile.ZIP_STORED for info in inner.infolist()):
            raise _refused(path, "compressed example inputs")
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as cause:
        raise _refused(path, "example inputs that are not plain tensors") from cause


def _refused(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path.name} holds {what}, which is no plain data and could run code; "
        "export the model again with torch.export.save."
    )
