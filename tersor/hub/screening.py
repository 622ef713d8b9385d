"""What an exported program's file (.pt2) may hold: plain data, and nothing that could run code or take endless memory.

`torch.export.load` unpickles whatever an archive says is pickled, finds operators by walking from `torch` (which reaches
`torch.os.system`), evaluates size expressions and imports what a tree names; the graph is compiled from its names when it is
called. So everything is looked at before: the members of the file (here), its JSON field by field (`schema`), operators one
by one (`allowed`), size expressions (`expressions`) and the example inputs (`samples`). What passes is loaded and rehearsed
without memory (`rehearsal`) before anything is computed.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tersor import foreign
from tersor.errors import ArtifactError
from tersor.hub import samples, schema

_FILES = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/[\w.]+"
    r"|models/model\.json|data/weights/(weight_\d{1,9}|model_weights_config\.json)"
    r"|data/constants/(tensor_\d{1,9}|model_constants_config\.json)|data/sample_inputs/model\.pt)",
    re.ASCII,
)
_LONGEST = 256 << 20  # bytes of JSON
_AXES = 64  # torch takes no more
_FOREIGN = (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RuntimeError)
_FOREIGN += (NotImplementedError, RecursionError, MemoryError, OverflowError, LookupError)  # what parsers make of noise


def screen(path: Path) -> dict[str, str]:
    """The extra files of an archive that holds only plain data; raises `ArtifactError` naming what is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            if damaged := archive.testzip():
                raise ArtifactError(
                    f"{path.name} is damaged: the checksum of {damaged} does not match; export it again."
                )
            content = {n: archive.read(i) for n, i in members.items() if not n.startswith(_BULK)}
        _check_reader(path, members, content)
        size = path.stat().st_size
        _check_tensors(content["data/weights/model_weights_config.json"], size)
        _check_tensors(content["data/constants/model_constants_config.json"], size)
        schema.check_program(foreign.strict_json(content["models/model.json"]))
        samples.check(content["data/sample_inputs/model.pt"])
        return {n[len("extra/") :]: data.decode() for n, data in content.items() if n.startswith("extra/")}
    except FileNotFoundError as cause:
        raise ArtifactError(f"{path.name} is missing; export the model again.") from cause
    except schema.Foreign as cause:
        raise refused(path, str(cause)) from cause
    except _FOREIGN as cause:
        said = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise ArtifactError(f"{path.name} is damaged or no exported program ({said}); export it again.") from cause


_BULK = ("data/weights/weight_", "data/constants/tensor_")


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by their names in the archive's one folder, once all of them are plain."""
    members: dict[str, zipfile.ZipInfo] = {}
    size = path.stat().st_size
    whole = archive.infolist()
    folders = {info.filename.partition("/")[0] for info in whole}
    for info in whole:
        name = info.filename.partition("/")[2]
        if not _FILES.fullmatch(name) or name in members:
            raise schema.Foreign(f"the member {info.filename!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise schema.Foreign(f"the compressed member {info.filename!r}")
        if info.flag_bits & 1:
            raise schema.Foreign(f"the encrypted member {info.filename!r}")
        members[name] = info
    if len(folders) > 1:
        raise schema.Foreign(f"members in the folders {', '.join(sorted(folders)[:3])!r}, and one folder was wanted")
    if sum(info.file_size for info in whole) > size:
        raise schema.Foreign("members larger than the file")
    if _overlap(whole):
        raise schema.Foreign("members that overlap")
    if sum(i.file_size for n, i in members.items() if n.endswith(".json")) > _LONGEST:
        raise schema.Foreign(f"more than {_LONGEST >> 20} MB of JSON")
    return members


def _overlap(members: Iterable[zipfile.ZipInfo]) -> bool:
    spans = sorted((info.header_offset, info.header_offset + 30 + info.file_size) for info in members)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _check_reader(path: Path, members: Mapping[str, zipfile.ZipInfo], content: Mapping[str, bytes]) -> None:
    """torch reads the file by another zip reader: what was looked at must be what it will see."""
    reader = torch._C.PyTorchFileReader(str(path))
    seen = set(reader.get_all_records())
    if seen - {".data/serialization_id"} != members.keys() - {".data/serialization_id"}:
        raise schema.Foreign("members that torch reads under other names")
    for name, data in content.items():
        if name in seen and bytes(reader.get_record(name)) != data:
            raise schema.Foreign(f"the member {name!r}, which torch reads otherwise")
    for name, info in members.items():
        if name in seen and name not in content and reader.get_record_size(name) != info.file_size:
            raise schema.Foreign(f"the member {name!r}, which torch reads otherwise")


def _check_tensors(data: bytes, size: int) -> None:
    config: dict[str, Any] = foreign.strict_json(data)
    for name, entry in config["config"].items():
        if entry["use_pickle"] or entry["tensor_meta"] is None:
            raise schema.Foreign(f"the pickled tensor {name[:80]!r}")
    schema.check_payload(config)
    for name, entry in config["config"].items():
        meta = entry["tensor_meta"]
        sizes = [s["as_int"] for s in (*meta["sizes"], *meta["strides"], meta["storage_offset"])]
        if min(sizes, default=0) < 0:
            raise schema.Foreign(f"a negative size of {name[:80]!r}")
        if max(len(meta["sizes"]), len(meta["strides"])) > _AXES:
            raise schema.Foreign(f"{len(meta['sizes'])} axes of {name[:80]!r}")
        values = math.prod(s["as_int"] for s in meta["sizes"])
        if values > 16 * size + (1 << 20):  # strides of zero may repeat some values, but not without end
            raise schema.Foreign(f"{values} values for {name[:80]!r} in a file of {size} bytes")


def refused(path: Path, what: str) -> ArtifactError:
    """What is said of an archive that holds `what`."""
    return ArtifactError(
        f"{path.name} holds {what}. Such a file could run code or have no end; export the model again with "
        "torch.export.save, or bring it as a function (path/to/file.py:function)."
    )
