"""OpenVINO on the CPU: float32, bfloat16 where the CPU has it, or int8 from the hub's Q/DQ pairs.

It reads the hub's ONNX file itself: OpenVINO's own format says the same in two to five times the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from tersor.errors import MissingRuntime
from tersor.hub.files import damaged, existing, named, refused, save_onnx
from tersor.hub.placement import Placement
from tersor.hub.precision import label_of, matrix_names, reasons
from tersor.target import Audit, Compressed, Fidelity, Operator, Runner, Target

FILE = "model.onnx"
# OpenVINO 2026.4 computes wrong values for channel pads on a grid whose zero is not code 0, and reads memory that is not its
# own for sums and averages over three-dimensional codes.
_PLACEMENT = Placement(padded_zero=False, sequences=False)
PLACEMENTS = {
    "standard": _PLACEMENT,
    "signed": replace(_PLACEMENT, signed=True),
    "outputs": replace(_PLACEMENT, outputs=True),
}
_STATIC_SHAPES = 6
_LARGE = 1 << 18  # bytes: from here on copying an input costs more than handing it over
_HEAVY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq", "ScaledDotProductAttention")
_SHORT = {"u8": "i8", "i8": "i8", "f32": "f32", "bf16": "bf16", "f16": "f16", "u4": "i4", "i4": "i4"}


@dataclass(frozen=True)
class OpenVINO(Target):
    """`fp32` (pinned: the runtime's default may be lower), `bf16`, or `int8`."""

    precision: str = "fp32"
    placement: str = "standard"
    placements: ClassVar[tuple[str, ...]] = tuple(PLACEMENTS)
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
        from tersor.hub.fidelity import compare

        return (
            compare(ir.load(existing(folder, FILE)), inputs, "openvino", _outputs) if self.precision == "int8" else None
        )

    def available(self) -> str | None:
        if self.precision not in self.precisions:
            return f"Target openvino has no precision {self.precision!r}; choose {', '.join(self.precisions)}."
        if not find_spec("openvino"):
            return _MISSING
        if self.precision == "bf16" and "BF16" not in _runtime().Core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            return "This CPU has no bfloat16 arithmetic (AVX512-BF16 or AMX); choose precision fp32 or int8."
        return None

    def usage(self, inputs: tuple[str, ...]) -> str:
        hint = "bf16" if self.precision == "bf16" else "f32"
        return (
            "import openvino\n"
            f'settings = {{"INFERENCE_PRECISION_HINT": "{hint}", "PERFORMANCE_HINT": "LATENCY"}}\n'
            f'model = openvino.Core().compile_model("{FILE}", "CPU", settings)\n'
            f"# {', '.join(inputs)}: numpy arrays as the original model takes them (float32), first axis the batch\n"
            f"outputs = list(model([{', '.join(inputs)}]).values())"
        )


_MISSING = "Target openvino needs OpenVINO, which is not installed; run: pip install 'openvino>=2026.0'"


def _runtime() -> ModuleType:
    try:
        import openvino
    except ImportError as cause:
        raise MissingRuntime(_MISSING) from cause
    return openvino


def _outputs(onnx: ir.Model, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One run of a model that is on no disk."""
    core = _runtime().Core()
    model = core.read_model(ir.to_proto(onnx).SerializeToString())
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    feed = {v.name: np.ascontiguousarray(a) for v, a in zip(onnx.graph.inputs, inputs, strict=True)}
    read = {i.get_any_name() for i in model.inputs}
    request.infer({name: array for name, array in feed.items() if name in read})
    return tuple(request.get_output_tensor(i).data.copy() for i in range(len(model.outputs)))


Bound = tuple[Any, list[np.ndarray], list[np.ndarray]]
"""A request of fixed shapes, the arrays that it reads, and those that it writes."""


class _Runner(Runner):
    """Not for several threads at once: each input shape has one request whose buffers are reused."""

    def __init__(self, path: Path, precision: str, threads: int):
        ov = _runtime()
        self._core = ov.Core()
        self._path = path
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads > 0:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._model = self._read()
        # OpenVINO forgets inputs that no output needs; callers still pass them.
        self.inputs = tuple(str(v.name) for v in ir.load(path).graph.inputs)
        self._read_inputs = frozenset(i.get_any_name() for i in self._model.inputs)
        self.outputs = tuple(o.get_any_name() for o in self._model.outputs)
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._dynamic: Any = None
        self._bound: dict[tuple[tuple[int, ...], ...], Bound] = {}
        self._lent: dict[str, np.ndarray] = {}  # alive for as long as a request may read them
        # Compiling now makes damage show on load, not on the first prediction.
        self._dynamic_request()

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._path)
        except RuntimeError as cause:
            raise damaged(self._path, cause) from cause

    def predict(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        bound = self._bound.get(tuple([a.shape for a in inputs]))
        return self._predict_anew(inputs) if bound is None else self._predict_again(inputs, bound)

    def _predict_again(self, inputs: Sequence[np.ndarray], bound: Bound) -> tuple[np.ndarray, ...]:
        """The short way, for shapes that were seen before."""
        request, buffers, results = bound
        try:
            for array, buffer in zip(inputs, buffers, strict=True):
                np.copyto(buffer, array, casting="same_kind")
            request.infer()
        except (RuntimeError, TypeError, ValueError) as cause:
            raise refused(named(self.inputs, inputs), cause) from cause
        return tuple([r.copy() for r in results])

    def _predict_anew(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        given = {n: a for n, a in named(self.inputs, inputs).items() if n in self._read_inputs}
        try:
            request = self._request({name: array.shape for name, array in given.items()})
            for name, array in given.items():
                if request is self._dynamic:
                    request.get_tensor(name).shape = array.shape
                if request is not self._dynamic and array.nbytes >= _LARGE:
                    self._lend(request, name, array)
                else:
                    # At batch 1 copying into the request's own buffer is half the time of handing over the array.
                    np.copyto(request.get_tensor(name).data, array, casting="same_kind")
            request.infer()
        except (RuntimeError, TypeError, ValueError) as cause:
            raise refused(given, cause) from cause
        results = [request.get_output_tensor(i).data for i in range(len(self.outputs))]
        small = all(array.nbytes < _LARGE for array in inputs)
        if request is not self._dynamic and small and len(given) == len(inputs):
            buffers = [request.get_tensor(name).data for name in given]
            self._bound[tuple([a.shape for a in inputs])] = request, buffers, results
        return tuple(r.copy() for r in results)

    def _lend(self, request: Any, name: str, array: np.ndarray) -> None:
        """Let the request read the caller's own memory."""
        held = request.get_tensor(name).data
        if not np.can_cast(array.dtype, held.dtype, "same_kind"):
            raise TypeError(f"{name} is {array.dtype}, not {held.dtype}")
        self._lent[name] = np.require(array, held.dtype, ["C", "W"])  # it takes no read-only memory
        request.set_tensor(name, _runtime().Tensor(self._lent[name], shared_memory=True))

    def _request(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A request compiled for exactly these shapes (faster); the dynamic one when there were many."""
        key = tuple(shapes.values())
        if key not in self._requests:
            if len(self._requests) >= _STATIC_SHAPES:
                return self._dynamic_request()
            model = self._read()
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._requests[key] = self._compile(model).create_infer_request()
        return self._requests[key]

    def _dynamic_request(self) -> Any:
        if self._dynamic is None:
            self._dynamic = self._compile(self._model).create_infer_request()
        return self._dynamic

    def _compile(self, model: Any) -> Any:
        try:
            return self._core.compile_model(model, "CPU", self._settings)
        except RuntimeError as cause:
            raise damaged(self._path, cause) from cause

    def audit(self) -> Audit:
        """Read from the runtime's own graph of the compiled model."""
        compiled = self._dynamic_request().get_compiled_model()
        return Audit(tuple(_operators(compiled.get_runtime_model(), ir.load(self._path).graph)))


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


_NOT_FUSED = "OpenVINO has no integer kernel for it with these neighbours"


def _text(info: Any, key: str) -> str:
    value: Any = info[key] if key in info else ""  # noqa: SIM401 (its maps have no get)
    return str(value.value if type(value).__name__ == "OVAny" else value)
