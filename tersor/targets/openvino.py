"""OpenVINO on the CPU: float32, bfloat16 where the CPU has it, or int8 from the hub's Q/DQ pairs.

It reads the hub's ONNX file itself: OpenVINO's own format says the same in two to five times the bytes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tersor.errors import MissingRuntime
from tersor.hub.files import existing, input_names, named, not_taken, refused, save_onnx
from tersor.hub.placement import Placement
from tersor.hub.precision import label_of, matrix_names, reasons
from tersor.memory import LARGE, trim
from tersor.target import Audit, Compressed, Fidelity, Input, Operator, Runner, Target, described, variables

if TYPE_CHECKING:  # loading needs no exporter, and no onnx_ir, which takes a second to import
    import onnx_ir as ir
    import openvino

    from tersor.hub.refusal import Shape

FILE = "model.onnx"
# OpenVINO 2026.4 computes wrong values for channel pads on a grid whose zero is not code 0, and reads memory that is not its
# own for sums and averages over three-dimensional codes.
_PLACEMENT = Placement(padded_zero=False, sequences=False)
PLACEMENTS = {
    "standard": _PLACEMENT,
    "signed": replace(_PLACEMENT, signed=True),
}
_STATIC_SHAPES = 6
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq", "ScaledDotProductAttention")
_SHORT = {"u8": "i8", "i8": "i8", "f32": "f32", "bf16": "bf16", "f16": "f16", "u4": "i4", "i4": "i4"}


@dataclass(frozen=True)
class OpenVINO(Target):
    """`fp32` (pinned: the runtime's default may be lower), `bf16`, or `int8`."""

    precision: str = "fp32"
    placement: str = "standard"
    placements: ClassVar[tuple[str, ...]] = tuple(PLACEMENTS)
    folds_norms: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

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
        return _Runner(existing(folder, FILE), "bf16" if self.precision == "bf16" else "f32", threads)

    def fidelity(self, folder: Path, inputs: Sequence[np.ndarray]) -> Fidelity | None:
        import onnx_ir as ir

        from tersor.hub.fidelity import compare

        return (
            compare(ir.load(existing(folder, FILE)), inputs, "openvino", _outputs) if self.precision == "int8" else None
        )

    def available(self) -> str | None:
        if self.precision not in self.precisions:
            return f"Target openvino has no precision {self.precision!r}; choose {', '.join(self.precisions)}."
        if not find_spec("openvino"):
            return _MISSING
        if self.precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "This CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX); choose precision fp32 or int8."
        return None

    def blame(self, compressed: Compressed) -> str:
        from tersor.hub.export import to_onnx
        from tersor.hub.refusal import blamed

        return blamed(to_onnx(compressed), _shapes)

    def usage(self, inputs: Sequence[Input], outputs: Sequence[str], threads: int) -> str:
        hint = "bf16" if self.precision == "bf16" else "f32"
        shapes = {i.name: list(i.shape) for i in inputs}
        return (
            "from collections.abc import Callable\n\nimport numpy as np\nimport openvino\n\n\n"
            f"{inspect.getsource(opened)}\n\n"
            "# For another batch size change the shapes. threads=0 lets OpenVINO choose.\n"
            f'run = opened(openvino.Core(), "{FILE}", {shapes}, "{hint}", threads={threads})\n'
            f"{described(inputs)}"
            f"outputs = run({', '.join(variables(inputs))})"
        )


def _words(cause: Exception) -> str:
    """What OpenVINO says, without where in its own sources it says it."""
    lines = [line.strip() for line in str(cause).splitlines()]
    own = ("Exception from", "Check ", "FrontEnd API", "Model wasn't", "Summary", "While validating")
    return " ".join(line for line in lines if line and not line.startswith(own))


def _shapes(onnx: ir.Model) -> list[Shape]:
    """What OpenVINO makes of the outputs of a model in memory."""
    import onnx_ir as ir

    core = _core()
    model = core.read_model(ir.to_proto(onnx).SerializeToString())
    core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [
        None if s.rank.is_dynamic else tuple(None if d.is_dynamic else d.get_length() for d in s)
        for s in (output.get_partial_shape() for output in model.outputs)
    ]


_TELEMETRY = "openvino_telemetry"
_MISSING = "Target openvino needs OpenVINO, which is not installed; run: pip install 'openvino>=2026.0'"


def _runtime() -> ModuleType:
    """The package, imported without what it tells its makers of that: that looks up a host and keeps an id of the machine."""
    telemetry = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as where it is not installed: OpenVINO has a stub for that
    try:
        import openvino
    except ImportError as cause:
        raise MissingRuntime(_MISSING) from cause
    finally:
        del sys.modules[_TELEMETRY]
        if telemetry is not None:
            sys.modules[_TELEMETRY] = telemetry
    return openvino


def _core() -> openvino.Core:
    return _only_core(_runtime())


@cache
def _only_core(runtime: ModuleType) -> openvino.Core:
    """The one of this process, never closed.

    Each puts aside the stack that signals are handled on, and takes its own away when it is closed: of two that are not closed
    in reverse order, one leaves the process with none, and its next signal (Ctrl-C, an alarm) ends it by SIGSEGV.
    """
    return runtime.Core()


def _outputs(onnx: ir.Model, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One run of a model that is on no disk."""
    import onnx_ir as ir

    core = _core()
    model = core.read_model(ir.to_proto(onnx).SerializeToString())
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    feed = {v.name: np.ascontiguousarray(a) for v, a in zip(onnx.graph.inputs, inputs, strict=True)}
    read = {i.get_any_name() for i in model.inputs}
    request.infer({name: array for name, array in feed.items() if name in read})
    return tuple(request.get_output_tensor(i).data.copy() for i in range(len(model.outputs)))


def opened(
    core: openvino.Core, file: str, shapes: dict[str, list[int]], precision: str, threads: int
) -> Callable[..., list[np.ndarray]]:
    """A function of the inputs. It is compiled for these shapes: what is fixed beforehand takes no time in each call."""
    import openvino

    model = core.read_model(file)
    known = [name for value in model.inputs for name in value.names]
    read = [i for i, name in enumerate(shapes) if name in known]  # inputs that no output needs are forgotten
    names = [list(shapes)[i] for i in read]
    model.reshape({name: shapes[name] for name in names})
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    buffers = [request.get_tensor(name).data for name in names]
    results = [request.get_output_tensor(i).data for i in range(len(model.outputs))]
    moving = any(output.partial_shape.is_dynamic for output in model.outputs)  # sizes that depend on values
    inner = list(zip(read, names, buffers, strict=True))
    small = [(i, buffer) for i, _, buffer in inner if buffer.nbytes < 1 << 18]
    large = [(i, name, buffer.dtype) for i, name, buffer in inner if buffer.nbytes >= 1 << 18]
    lent = {}  # alive for as long as the request may read it

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        for i, buffer in small:
            np.copyto(buffer, inputs[i], casting="same_kind")
        for i, name, dtype in large:  # cheaper to lend than to copy; read-only memory is not taken
            if not np.can_cast(inputs[i].dtype, dtype, "same_kind"):
                raise TypeError(f"{name} is {inputs[i].dtype}, not {dtype}")
            lent[name] = np.require(inputs[i], dtype, ["C", "W"])
            request.set_tensor(name, openvino.Tensor(lent[name], shared_memory=True))
        request.infer()
        if moving:
            return [request.get_output_tensor(i).data.copy() for i in range(len(results))]
        return [result.copy() for result in results]  # the next call writes over them

    return run


class _Runner(Runner):
    """Not for several threads at once: each input shape has one request whose buffers are reused.

    Each shape that a model is compiled for has all weights of its own. A large model is compiled once at a time: for any
    shape, or, to be called again and again, for one.
    """

    def __init__(self, path: Path, precision: str, threads: int):
        self._path = path
        self._precision, self._threads = precision, threads
        self._large = path.stat().st_size > LARGE
        self._model: Any = self._read()
        # OpenVINO forgets inputs that no output needs; callers still pass them.
        self.inputs = input_names(path)
        self._read_inputs = frozenset(i.get_any_name() for i in self._model.inputs)
        self.outputs = tuple(o.get_any_name() for o in self._model.outputs)
        self._opened: dict[tuple[tuple[int, ...], ...], Callable[..., list[np.ndarray]]] = {}
        self._dynamic: Any = None
        # Compiling now makes damage show on load, not on the first prediction.
        self._dynamic_request()

    def _read(self) -> Any:
        try:
            return _core().read_model(self._path)
        except RuntimeError as cause:
            raise not_taken(self._path, cause, "OpenVINO", _words(cause)) from cause

    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        run = self._opened.get(tuple([a.shape for a in inputs])) or self._for_shapes(inputs)
        try:
            return tuple(run(*inputs))
        except (RuntimeError, TypeError, ValueError, IndexError) as cause:
            raise refused(named(self.inputs, inputs), cause) from cause

    def call(self, *inputs: np.ndarray) -> Callable[[], object]:
        if not self._large:
            return partial(self._for_shapes(inputs), *inputs)
        self._dynamic = self._model = None
        return partial(self._compiled(inputs), *inputs)

    def _for_shapes(self, inputs: Sequence[np.ndarray]) -> Callable[..., Sequence[np.ndarray]]:
        """What is compiled for exactly these shapes (faster); one for all where there were many."""
        key = tuple([a.shape for a in inputs])
        if key not in self._opened:
            if self._large or len(self._opened) >= _STATIC_SHAPES:
                return self._predict_dynamic
            self._opened[key] = self._compiled(inputs)
        return self._opened[key]

    def _compiled(self, inputs: Sequence[np.ndarray]) -> Callable[..., list[np.ndarray]]:
        given = named(self.inputs, inputs)
        try:
            shapes = {name: list(array.shape) for name, array in given.items()}
            return opened(_core(), str(self._path), shapes, self._precision, self._threads)
        except (RuntimeError, TypeError, ValueError) as cause:
            raise refused(given, cause) from cause

    def _predict_dynamic(self, *inputs: np.ndarray) -> list[np.ndarray]:
        given = {n: a for n, a in named(self.inputs, inputs).items() if n in self._read_inputs}
        request = self._dynamic_request()
        for name, array in given.items():
            tensor = request.get_tensor(name)
            tensor.shape = array.shape
            np.copyto(tensor.data, array, casting="same_kind")
        request.infer()
        return [request.get_output_tensor(i).data.copy() for i in range(len(self.outputs))]

    def _dynamic_request(self) -> Any:
        if self._dynamic is None:
            settings = {
                "INFERENCE_PRECISION_HINT": self._precision,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self._threads,
            }
            model = self._read() if self._model is None else self._model
            try:
                self._dynamic = _core().compile_model(model, "CPU", settings).create_infer_request()
            except RuntimeError as cause:
                raise not_taken(self._path, cause, "OpenVINO", _words(cause)) from cause
            self._model = None  # which holds the weights as well
        return self._dynamic

    def audit(self) -> Audit:
        """Read from the runtime's own graph of the compiled model."""
        import onnx_ir as ir

        executed = self._dynamic_request().get_compiled_model().get_runtime_model()
        if self._large:
            self._dynamic = None  # which holds all weights, as what is read here does
            trim()
        return Audit(tuple(_operators(executed, ir.load(self._path).graph)))


def _operators(runtime_model: Any, hub: ir.Graph) -> list[Operator]:
    names, why = matrix_names(hub), reasons(hub)
    found = []
    for node in runtime_model.get_ordered_ops():
        info = node.get_rt_info()
        kind = _text(info, "layerType")
        if kind in _HEAVY:
            precision = _SHORT.get(_text(info, "runtimePrecision"), _text(info, "runtimePrecision"))
            origins = [label_of(n, names) for n in _text(info, "originalLayersNames").split(",")]
            name = next((names[o] for o in origins if o in names), origins[0])
            reason = "" if precision == "i8" else why.get(name, "") or _NOT_FUSED
            found.append(Operator(name, kind, precision, reason))
    return found


_NOT_FUSED = "OpenVINO has no integer kernel for it between these operators"


def _text(info: Any, key: str) -> str:
    value: Any = info[key] if key in info else ""  # noqa: SIM401 (its maps have no get)
    return str(value.value if type(value).__name__ == "OVAny" else value)
