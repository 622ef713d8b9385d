"""ONNX files on disk and what every runner checks before it loads one."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tersor.errors import ArtifactError, DataError, ExportError, TersorError

if TYPE_CHECKING:  # loading needs no onnx_ir, which takes a second to import
    import onnx_ir as ir

_PROTOBUF_LIMIT = 2**31 - 2**20


def save_onnx(onnx: ir.Model, path: Path) -> None:
    """Write one file, or two (`.data` beside it) where protobuf's limit of 2 GiB asks for it."""
    import onnx_ir as ir

    if not _fits(onnx):
        ir.save(onnx, path, external_data=f"{path.name}.data")
    else:
        with path.open("wb") as file:
            _write(onnx, file)


def _write(onnx: ir.Model, file: BinaryIO) -> None:
    """The file as protobuf would write it, but for the order of its fields, one large tensor in memory at a time.

    A message in a message is its number, its length and its fields, in any order: the graph's small parts are serialized
    without the large tensors, which are appended.
    """
    import onnx_ir as ir

    elsewhere = (ir.ExternalTensor, ir.StringTensor)
    large = {
        name: tensor
        for name, value in onnx.graph.initializers.items()
        if (tensor := value.const_value) is not None and tensor.nbytes > _LARGE and not isinstance(tensor, elsewhere)
    }
    try:
        for name, tensor in large.items():  # the same, of no values
            onnx.graph.initializers[name].const_value = ir.tensor(
                np.zeros(0, tensor.dtype.numpy()), tensor.dtype, name=name
            )
        model = ir.to_proto(onnx)
    finally:
        for name, tensor in large.items():
            onnx.graph.initializers[name].const_value = tensor
    tensors = list(model.graph.initializer)
    heads, bodies = [], []
    for proto in tensors:
        body = large.get(proto.name)
        if body is not None:
            proto.ClearField("raw_data")
            proto.ClearField("dims")
            proto.dims.extend(body.shape.numpy())
        heads.append(proto.SerializeToString() + (b"" if body is None else _field(_RAW_DATA, body.nbytes)))
        bodies.append(body)
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    sizes = [len(head) + (0 if body is None else body.nbytes) for head, body in zip(heads, bodies, strict=True)]
    marks = [_field(_INITIALIZER, size) for size in sizes]
    file.write(model.SerializeToString())
    file.write(_field(_GRAPH, len(graph) + sum(sizes) + sum(map(len, marks))))
    file.write(graph)
    for mark, head, body in zip(marks, heads, bodies, strict=True):
        file.write(mark + head)
        if body is not None:
            file.write(body.tobytes())


_LARGE = 1 << 16
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # numbers of fields in onnx.proto


def _field(number: int, size: int) -> bytes:
    """What stands before the bytes of a field of protobuf."""
    return bytes([number << 3 | 2]) + _varint(size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def onnx_bytes(onnx: ir.Model) -> bytes:
    """One file. Raises `ExportError` where the model is too large for one."""
    if not _fits(onnx):
        raise ExportError("The model has more than 2 GB, which one ONNX file cannot hold; write a .pt2 archive.")
    import onnx_ir as ir

    return ir.to_proto(onnx).SerializeToString()


def _fits(onnx: ir.Model) -> bool:
    tensors = [v.const_value for v in onnx.graph.initializers.values() if v.const_value is not None]
    return sum(t.nbytes for t in tensors) < _PROTOBUF_LIMIT


def existing(folder: Path, name: str) -> Path:
    """The file `name` of an exported folder; raises `ArtifactError` where it is absent or empty."""
    path = folder / name
    if not path.is_file() or path.stat().st_size == 0:
        raise ArtifactError(
            f"{folder} holds no {name} (or an empty one), so it is not a complete export; export it again."
        )
    return path


def input_names(path: Path) -> tuple[str, ...]:
    """As the file has them, in order; those that no output needs as well."""
    import onnx

    return tuple(value.name for value in onnx.load(path, load_external_data=False).graph.input)


def refuse_outside(path: Path) -> None:
    """Raise `ArtifactError` where an ONNX file has tensors in other files than the one that `save_onnx` writes beside it: a
    runtime would read whatever file of this machine it names."""
    if not _mentions(path, b"location"):  # as each such tensor does; to look for it takes no memory
        return
    import onnx

    try:
        places = set(_places(onnx.load(path, load_external_data=False)))
    except Exception as cause:  # protobuf raises anything for bytes that are no model
        raise damaged(path, cause) from cause
    if strange := sorted(places - {f"{path.name}.data"}):
        raise ArtifactError(
            f"{path.name} has weights in {strange[0][:200]!r}, and only {path.name}.data beside it was wanted; it was not "
            "written by Tersor, or was changed."
        )


def _mentions(path: Path, word: bytes) -> bool:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word) >= 0


def _places(message: Any) -> Iterator[str]:
    """The other files that tensors anywhere in a protobuf message lie in."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _places(each)


def damaged(path: Path, cause: Exception) -> ArtifactError:
    """What to raise where a runtime refuses a file that it once accepted."""
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return ArtifactError(
        f"{path.name} is damaged or incomplete: the runtime refuses it ({reason[:200]}); export it again."
    )


def not_taken(path: Path, cause: Exception, runtime: str, words: str = "") -> TersorError:
    """What to raise where a runtime refuses a file: an `ExportError` for one that is whole, else that it is damaged."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        whole = bool(model.opset_import and model.graph.output)
    except Exception:  # protobuf raises anything for bytes that are no model
        whole = False
    said = words or (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    if not whole:
        return damaged(path, cause)
    return ExportError(f"{runtime} refuses the model ({said[:300]}); choose another --target.")


def named(names: Sequence[str], arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by input name; raises `DataError` where their number is wrong."""
    if len(names) != len(arrays):
        raise DataError(f"The model takes {len(names)} inputs ({', '.join(names)}) and was given {len(arrays)}.")
    return dict(zip(names, arrays))  # noqa: B905 - checked above, and this runs in every call


def refused(arrays: Mapping[str, np.ndarray], cause: Exception) -> DataError:
    """What to raise where a runtime refuses inputs of these shapes."""
    seen = ", ".join(f"{name} {a.dtype} {list(a.shape)}" for name, a in arrays.items())
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return DataError(
        f"The runtime refuses inputs {seen} ({reason[:200]}); pass arrays as the original model takes them."
    )
