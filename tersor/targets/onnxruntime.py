"""ONNX Runtime on the CPU: float32, or int8 through its QDQ fusions."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tersor.errors import MissingRuntime, TargetError
from tersor.hub.files import damaged, existing, named, not_taken, refused, save_onnx
from tersor.hub.placement import Placement
from tersor.hub.precision import label_of, matrix_names, reasons
from tersor.measuring.machine import weight_bits
from tersor.memory import LARGE, trim
from tersor.scratch import scratch
from tersor.target import Audit, Compressed, Fidelity, Input, Operator, Runner, Target, described, variables

if TYPE_CHECKING:  # loading needs no onnx_ir, which takes a second to import
    import onnx_ir as ir
    import onnxruntime

FILE = "model.onnx"
PLACEMENTS = {
    "standard": Placement(dynamic=True),
    "signed": Placement(signed=True, dynamic=True),
}
_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
_DYNAMIC = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_FLOAT = (
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Attention",
)
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """`fp32` or `int8` (standard: unsigned activations, signed weights, which is what the VNNI kernels take)."""

    precision: str = "fp32"
    placement: str = "standard"
    placements: ClassVar[tuple[str, ...]] = tuple(PLACEMENTS)
    folds_norms: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    dynamic_feeds: ClassVar[bool] = True

    def export(self, compressed: Compressed, folder: Path) -> None:
        from tersor.hub.export import to_onnx  # here, because loading needs no torch
        from tersor.hub.insertion import insert_grids

        exported = to_onnx(compressed)
        onnx = (
            insert_grids(exported, compressed, PLACEMENTS[self.placement])
            if self.precision == "int8"
            else exported.onnx
        )
        save_onnx(onnx, folder / FILE)

    def load(self, folder: Path, threads: int = 0) -> Runner:
        return _Runner(existing(folder, FILE), threads)

    def fidelity(self, folder: Path, inputs: Sequence[np.ndarray]) -> Fidelity | None:
        import onnx_ir as ir

        from tersor.hub.fidelity import compare

        return (
            compare(ir.load(existing(folder, FILE)), inputs, "onnxruntime", _outputs)
            if self.precision == "int8"
            else None
        )

    def available(self) -> str | None:
        if self.precision not in self.precisions:
            return f"Target onnxruntime has no precision {self.precision!r}; choose {' or '.join(self.precisions)}."
        return None if find_spec("onnxruntime") else _MISSING

    def usage(self, inputs: Sequence[Input], outputs: Sequence[str], threads: int) -> str:
        exact, feed = "", ", ".join(f"{i.name!r}: {v}" for i, v in zip(inputs, variables(inputs), strict=True))
        if self.precision == "int8" and weight_bits() == 8:
            exact = "# On an x86 processor without VNNI pass exact=True, because its int8 kernels overflow.\n"
        return (
            f"import onnxruntime\n\n\n{inspect.getsource(opened)}\n\n"
            f"# threads=0 lets ONNX Runtime choose. Any batch size works.\n{exact}"
            f'session = opened("{FILE}", threads={threads})\n'
            f"{described(inputs)}"
            f"outputs = session.run({list(outputs)}, {{{feed}}})"
        )


def opened(file: str, threads: int, exact: bool = False) -> onnxruntime.InferenceSession:
    """exact: where sums of int8 products may overflow."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


_MISSING = "Target onnxruntime needs ONNX Runtime, which is not installed; run: pip install 'onnxruntime>=1.30'"


def _runtime() -> ModuleType:
    """The package, told before it is imported that it is to keep no id of the machine and to send nothing."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as cause:
        raise MissingRuntime(_MISSING) from cause
    return onnxruntime


def _outputs(onnx: ir.Model, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One run of a model that is on no disk."""
    with scratch() as folder:
        save_onnx(onnx, Path(folder) / FILE)
        return _Runner(Path(folder) / FILE, 0).predict(*inputs)


class _Runner(Runner):
    def __init__(self, path: Path, threads: int):
        self._path, self._threads = path, threads
        session = _session(path, threads)
        self.inputs = tuple(i.name for i in session.get_inputs())
        self.outputs = tuple(o.name for o in session.get_outputs())
        self._types = [_NUMPY[i.type] for i in session.get_inputs()]
        self._run, self._names = session.run, list(self.outputs)  # looked up once: a call may take 30 microseconds

    def call(self, *inputs: np.ndarray) -> Callable[[], object]:
        return partial(self._run, self._names, named(self.inputs, inputs))

    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        feed = named(self.inputs, inputs)
        try:
            return tuple(self._run(self._names, feed))
        except Exception as cause:  # its errors share no other base class
            # Types are only looked at when it fails: asking each time would show.
            converted = {n: np.asarray(a, t) for (n, a), t in zip(feed.items(), self._types, strict=True)}
            if all(converted[name] is array for name, array in feed.items()):
                raise refused(converted, cause) from cause
            return self.predict(*converted.values())

    def audit(self) -> Audit:
        """Read from the graph that the session optimised, dumped to a temporary file."""
        import onnx_ir as ir

        if self._path.stat().st_size > LARGE:
            self._run = self._again  # the session holds all weights, as what is read here does
            trim()
        hub = ir.load(self._path).graph
        names, why = matrix_names(hub), reasons(hub)
        del hub  # with all weights as well
        trim()
        with scratch() as folder:
            dump = Path(folder) / "optimised.onnx"
            options = _runtime().SessionOptions()
            options.log_severity_level = 4
            options.optimized_model_filepath = str(dump)
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            if _widened(self._path):
                options.add_session_config_entry("session.x64quantprecision", "1")
            _runtime().InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
            trim()
            return Audit(tuple(_operators(ir.load(dump).graph, names, why)))

    def _again(self, names: list[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self._run = _session(self._path, self._threads).run
        return self._run(names, feed)


def _session(path: Path, threads: int) -> Any:
    _runtime()
    try:
        return opened(str(path), threads, _widened(path))
    except Exception as cause:  # its errors share no other base class
        if isinstance(cause, MemoryError):
            raise TargetError(f"There is not enough memory to load {path.name}; free some and try again.") from cause
        raise not_taken(path, cause, "ONNX Runtime") from cause


def _widened(path: Path) -> bool:
    """Whether exact, slower kernels must be asked for: the file was made on another machine."""
    return weight_bits() < 8 and _overflows(path)


def _overflows(path: Path) -> bool:
    """Whether a file's int8 weights are too wide for a processor that adds products in 16 bits."""
    import onnx

    try:
        codes = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return any(np.abs(onnx.numpy_helper.to_array(t).astype(np.int16)).max(initial=0) > 64 for t in codes)
    except Exception as cause:  # protobuf raises anything for bytes that are no model
        raise damaged(path, cause) from cause


def _operators(graph: ir.Graph, names: Mapping[str, str], why: Mapping[str, str]) -> list[Operator]:
    found = []
    for node in graph:
        precision = _precision(node)
        if precision is not None:
            origin = label_of(str(node.name), names)
            reason = "" if precision == "i8" else why.get(names.get(origin, ""), "") or _NOT_FUSED
            found.append(Operator(names.get(origin, str(node.name)), node.op_type, precision, reason))
    return found


_NOT_FUSED = "ONNX Runtime has no integer kernel for it between these operators"


def _precision(node: ir.Node) -> str | None:
    if node.op_type in _INTEGER or node.op_type in _DYNAMIC:
        return "i8"
    if node.op_type == "MatMulNBits":
        return f"i{node.attributes['bits'].as_int() if 'bits' in node.attributes else 4}"
    return "f32" if node.op_type in _FLOAT or node.op_type in _RECURRENT else None


_NUMPY: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
