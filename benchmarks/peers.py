"""The peers: what a careful engineer reaches for today, each with its own default settings.

A peer is three functions of the same last name. `prepare_*(key, folder)` turns the trained model into the peer's files,
`predict_*(key, folder, inputs)` gives the logits of these files in the peer's own runtime, and
`make_*(key, folder, batch, threads)` gives the clock a callable without arguments. Each is called in a process of its
own, which imports only that peer's runtime:

    python -m benchmarks.peers MODEL PEER FOLDER      prepares, predicts the test part, writes record.json

Choices that are ours, each to the peer's favour: OpenVINO models are compiled for the fixed batch that is timed (a
dynamic one is up to 1.5 times slower at batch 1) and fed in the fastest way its Python interface has; calibration sees
as many images as ours; every runtime's own graph optimizer stays on. Where a peer's documentation offers a choice that
costs little (memory format, freezing, bias correction, accuracy control), each choice is a row of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import environment, zoo
from tersor.measuring.machine import weight_bits

if TYPE_CHECKING:
    import openvino
    from onnxruntime import InferenceSession
    from torch import nn

Call = Callable[[], Any]
Logits = Callable[..., Any]  # a torch module or what compiling it gave
_SMALL = 2**18  # bytes; copying so few is cheaper than handing an array over
STEP = 50  # items per call when predicting; divides every test part


@dataclass(frozen=True)
class Peer:
    """One way of running a model that is not ours."""

    name: str
    title: str
    prepare: Callable[[str, Path], float | None]
    predict: Callable[[str, Path, np.ndarray], np.ndarray]
    make: Callable[..., Call]
    files: tuple[str, ...]  # what must travel to run it


# ---------------------------------------------------------------------------------------------------------- torch


def prepare_eager(key: str, folder: Path) -> None:
    """The state dictionary; nothing else is needed but the model's own code."""
    import torch

    torch.save(zoo.module(key).state_dict(), folder / "weights.pt")


def make_eager_channels_last(key: str, folder: str, batch: int, threads: int) -> Call:
    """One eager forward pass on images whose channels lie last, as torch recommends for convolutions on CPUs."""
    return _torch_call(_restore(key, Path(folder), threads), key, batch, channels_last=True)


def predict_eager(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the saved weights in eager mode."""
    return _torch_logits(_restore(key, folder), inputs)


def make_eager(key: str, folder: str, batch: int, threads: int) -> Call:
    """One eager forward pass."""
    return _torch_call(_restore(key, Path(folder), threads), key, batch)


def prepare_inductor(key: str, folder: Path) -> float:
    """The state dictionary; the seconds are those of compiling for batch 1, with an empty cache."""
    return _prepare_compiled(key, folder, tuned=False)


def prepare_inductor_tuned(key: str, folder: Path) -> float:
    """The same with weights frozen into the code, channels last and `max-autotune`."""
    return _prepare_compiled(key, folder, tuned=True)


def _prepare_compiled(key: str, folder: Path, tuned: bool) -> float:
    import torch

    prepare_eager(key, folder)
    compiled = _compile(key, folder, tuned=tuned)
    x = _laid(torch.from_numpy(zoo.sample(key, 1)), tuned)
    begin = time.perf_counter()
    with torch.no_grad():
        compiled(x)
    return time.perf_counter() - begin


def predict_inductor(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the model compiled for batch 1, whose code the clock will use again."""
    return _torch_logits(_compile(key, folder), inputs, 1)


def predict_inductor_tuned(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the tuned model compiled for batch 1."""
    return _torch_logits(_compile(key, folder, tuned=True), inputs, 1, channels_last=True)


def make_inductor_tuned(key: str, folder: str, batch: int, threads: int) -> Call:
    """One forward pass of the tuned model, compiled for this batch."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return _torch_call(_compile(key, Path(folder), threads, tuned=True), key, batch, channels_last=True)


def make_inductor(key: str, folder: str, batch: int, threads: int) -> Call:
    """One forward pass of `torch.compile(model)`, compiled for this batch."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of idle workers beside the clock
    return _torch_call(_compile(key, Path(folder), threads), key, batch)


def _restore(key: str, folder: Path, threads: int = 2) -> nn.Module:
    import torch

    torch.set_num_threads(threads)
    model = zoo.module(key)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval()


def _compile(key: str, folder: Path, threads: int = 2, tuned: bool = False) -> Logits:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    import torch

    module = _restore(key, folder, threads)
    if not tuned:
        return torch.compile(module, dynamic=False)
    import torch._inductor.config as settings

    settings.freezing = True
    laid: Any = module
    return torch.compile(laid.to(memory_format=torch.channels_last), dynamic=False, mode="max-autotune")


def _torch_call(model: Logits, key: str, batch: int, channels_last: bool = False) -> Call:
    import torch

    if channels_last and isinstance(model, torch.nn.Module):
        laid: Any = model
        model = laid.to(memory_format=torch.channels_last)
    x = _laid(torch.from_numpy(zoo.sample(key, batch)), channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return model(x)

    return call


def _laid(x: Any, channels_last: bool) -> Any:
    import torch

    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _torch_logits(model: Logits, inputs: np.ndarray, step: int = STEP, channels_last: bool = False) -> np.ndarray:
    import torch

    with torch.inference_mode():
        batches = (_laid(torch.from_numpy(x), channels_last) for x in _steps(inputs, step))
        return np.concatenate([model(x).numpy() for x in batches])


# -------------------------------------------------------------------------------------------------------- torchao


def prepare_torchao(key: str, folder: Path, images: np.ndarray | None = None) -> None:
    """PT2E with the default configuration of the x86 quantiser: static int8. images: else the calibration part."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    inputs = zoo.part(key, "calibration")[0] if images is None else images
    example = (torch.from_numpy(zoo.sample(key, 2)),)
    free = ({0: torch.export.Dim.DYNAMIC},)
    module = torch.export.export(zoo.module(key), example, dynamic_shapes=free).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for x in _steps(inputs):
            prepared(torch.from_numpy(x))
    torch.export.save(torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=free), folder / "model.pt2")


def predict_torchao(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the converted graph, whose quantise and dequantise nodes torch computes one by one."""
    import torch
    import torchao.quantization.pt2e  # noqa: F401  # registers the operators that the file names

    return _torch_logits(torch.export.load(folder / "model.pt2").module(), inputs)


# --------------------------------------------------------------------------------------------------- ONNX Runtime


def prepare_onnxruntime_fp32(key: str, folder: Path) -> None:
    """torch's own exporter, with a dynamic batch."""
    import torch

    x = torch.from_numpy(zoo.sample(key, 2))
    program = torch.onnx.export(
        zoo.module(key), (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
    )
    if program is None:
        raise SystemExit("torch.onnx.export gave no program")
    program.save(str(folder / "model.onnx"))


def prepare_onnxruntime_int8(key: str, folder: Path, images: np.ndarray | None = None) -> None:
    """`quantize_static` after `quant_pre_process`: QDQ, unsigned activations, signed weights per channel, with the range
    reduced to 7 bits where the processor has no VNNI, as the documentation asks for.

    images: else the calibration part.
    """
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.items: Iterator[np.ndarray] = iter(zoo.part(key, "calibration")[0] if images is None else images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            item = next(self.items, None)
            return None if item is None else {name: np.asarray(item)[None]}

    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    prepare_onnxruntime_fp32(key, scratch)
    name = _session(scratch / "model.onnx", 2).get_inputs()[0].name
    quant_pre_process(str(scratch / "model.onnx"), str(scratch / "ready.onnx"))
    q.quantize_static(
        str(scratch / "ready.onnx"),
        str(folder / "model.onnx"),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=True,
        reduce_range=weight_bits() < 8,
    )


def predict_onnxruntime(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits of the ONNX file."""
    session = _session(folder / "model.onnx", 2)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x})[0] for x in _steps(inputs)])


def make_onnxruntime(key: str, folder: str, batch: int, threads: int) -> Call:
    """One `session.run`."""
    session = _session(Path(folder) / "model.onnx", threads)
    feed = {session.get_inputs()[0].name: zoo.sample(key, batch)}
    return lambda: session.run(None, feed)


def _session(path: Path, threads: int) -> InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# ------------------------------------------------------------------------------------------------------- OpenVINO


def prepare_openvino(key: str, folder: Path) -> None:
    """OpenVINO's own conversion of the torch module, float32 weights."""
    import openvino as ov

    ov.save_model(_converted(key), folder / "model.xml", compress_to_fp16=False)


def prepare_nncf(key: str, folder: Path, images: np.ndarray | None = None) -> None:
    """`nncf.quantize` with its defaults on the converted model. images: else the calibration part."""
    import nncf
    import openvino as ov

    inputs = zoo.part(key, "calibration")[0] if images is None else images
    items = nncf.Dataset([np.asarray(x)[None] for x in inputs])
    ov.save_model(nncf.quantize(_converted(key), items, subset_size=len(inputs)), folder / "model.xml")


def prepare_nncf_accurate(key: str, folder: Path, images: np.ndarray | None = None) -> None:
    """`nncf.quantize` with the slow bias correction, which its documentation calls the more accurate one."""
    import nncf
    import openvino as ov

    inputs = zoo.part(key, "calibration")[0] if images is None else images
    items = nncf.Dataset([np.asarray(x)[None] for x in inputs])
    made = nncf.quantize(_converted(key), items, subset_size=len(inputs), fast_bias_correction=False)
    ov.save_model(made, folder / "model.xml")


def prepare_nncf_controlled(key: str, folder: Path) -> None:
    """`nncf.quantize_with_accuracy_control`, allowed the same drop on the same held-out part as ours."""
    import nncf
    import openvino as ov

    inputs = zoo.part(key, "calibration")[0]
    held, labels = zoo.part(key, "held")

    def accuracy(compiled: Any, items: Any) -> float:
        rights = [compiled([x])[0].argmax(1) == y for x, y in items]
        return float(np.mean(np.concatenate(rights)))

    made = nncf.quantize_with_accuracy_control(
        _converted(key),
        nncf.Dataset([np.asarray(x)[None] for x in inputs]),
        nncf.Dataset([(np.asarray(x)[None], y) for x, y in zip(held, labels, strict=True)]),
        validation_fn=accuracy,
        max_drop=0.005,
        subset_size=len(inputs),
    )
    ov.save_model(made, folder / "model.xml")


def predict_openvino_fp32(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits with float32 arithmetic."""
    return _openvino_logits(folder, inputs, "f32")


def predict_openvino_bf16(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits with bfloat16 arithmetic."""
    return _openvino_logits(folder, inputs, "bf16")


def predict_nncf(key: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Logits at the runtime's own choice of precision."""
    return _openvino_logits(folder, inputs, "")


def make_openvino(key: str, folder: str, batch: int, threads: int, precision: str = "") -> Call:
    """One inference from a NumPy array to a NumPy array, compiled for this batch."""
    import openvino as ov

    x = zoo.sample(key, batch)
    request = _compiled(Path(folder), x.shape, threads, precision).create_infer_request()

    def copied() -> np.ndarray:
        request.get_input_tensor().data[:] = x
        request.infer()
        return request.get_output_tensor().data

    def shared() -> np.ndarray:
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data

    return copied if x.nbytes < _SMALL else shared


def _converted(key: str) -> openvino.Model:
    import openvino as ov
    import torch

    example = torch.from_numpy(zoo.sample(key, 2))
    return ov.convert_model(zoo.module(key), example_input=example, input=[(-1, *zoo.CASES[key].shape)])


def _compiled(folder: Path, shape: tuple[int, ...], threads: int, precision: str) -> openvino.CompiledModel:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(folder / "model.xml")
    model.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})
    return core.compile_model(model, "CPU", settings)


def _openvino_logits(folder: Path, inputs: np.ndarray, precision: str) -> np.ndarray:
    compiled = _compiled(folder, (STEP, *inputs.shape[1:]), 2, precision)
    return np.concatenate([compiled([x])[0] for x in _steps(inputs)])


# --------------------------------------------------------------------------------------------------------- common

_IR = ("model.xml", "model.bin")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("eager", "torch eager", prepare_eager, predict_eager, make_eager, ("weights.pt",)),
        Peer("eager_channels_last", "torch eager, channels last", prepare_eager, predict_eager, make_eager_channels_last,
             ("weights.pt",)),
        Peer("inductor", "torch inductor", prepare_inductor, predict_inductor, make_inductor, ("weights.pt",)),
        Peer("inductor_tuned", "torch inductor, frozen and autotuned", prepare_inductor_tuned, predict_inductor_tuned,
             make_inductor_tuned, ("weights.pt",)),
        Peer("ort_fp32", "ONNX Runtime fp32", prepare_onnxruntime_fp32, predict_onnxruntime, make_onnxruntime,
             ("model.onnx",)),
        Peer("ort_int8", "ONNX Runtime int8", prepare_onnxruntime_int8, predict_onnxruntime, make_onnxruntime,
             ("model.onnx",)),
        Peer("ov_fp32", "OpenVINO fp32", prepare_openvino, predict_openvino_fp32, make_openvino, _IR),
        Peer("ov_bf16", "OpenVINO bf16", prepare_openvino, predict_openvino_bf16, make_openvino, _IR),
        Peer("nncf_int8", "NNCF int8 on OpenVINO", prepare_nncf, predict_nncf, make_openvino, _IR),
        Peer("nncf_accurate", "NNCF int8, slow bias correction", prepare_nncf_accurate, predict_nncf, make_openvino, _IR),
        Peer("nncf_controlled", "NNCF int8, accuracy control", prepare_nncf_controlled, predict_nncf, make_openvino, _IR),
    )
}  # fmt: skip
QUANTISERS: dict[str, tuple[str, Callable[..., None], Callable[[str, Path, np.ndarray], np.ndarray]]] = {
    "ort_int8": ("ONNX Runtime", prepare_onnxruntime_int8, predict_onnxruntime),
    "nncf_int8": ("NNCF on OpenVINO", prepare_nncf, predict_nncf),
    "nncf_accurate": ("NNCF, slow bias correction", prepare_nncf_accurate, predict_nncf),
    "torchao_int8": ("torchao PT2E", prepare_torchao, predict_torchao),
}  # by name: title, `prepare(key, folder, images)`, `predict`
_PRECISION = {"ov_fp32": "f32", "ov_bf16": "bf16"}


def arguments(peer: Peer, key: str, folder: Path, batch: int, threads: int) -> dict[str, Any]:
    """What the clock passes to the peer's `make`."""
    extra = {"precision": _PRECISION[peer.name]} if peer.name in _PRECISION else {}
    return {"key": key, "folder": str(folder), "batch": batch, "threads": threads, **extra}


def _steps(inputs: np.ndarray, step: int = STEP) -> Iterator[np.ndarray]:
    """Writable, contiguous batches of `step` items."""
    return (np.array(inputs[i : i + step]) for i in range(0, len(inputs), step))


def prepare(key: str, name: str, folder: Path) -> dict[str, Any]:
    """Make the peer's files, predict the test part with them, and keep both beside a record."""
    peer, before = PEERS[name], environment.load()
    folder.mkdir(parents=True, exist_ok=True)
    zoo.part(key, "calibration")
    warm(name)  # decoding and imports are not compression
    begin = time.perf_counter()
    seconds = peer.prepare(key, folder)
    seconds = time.perf_counter() - begin if seconds is None else seconds
    inputs, labels = zoo.part(key, "test")
    guess = peer.predict(key, folder, inputs).argmax(1)
    np.save(folder / "guess.npy", guess)
    record = {
        "seconds": round(seconds, 3),
        "bytes": sum((folder / file).stat().st_size for file in peer.files),
        "accuracy": float(np.mean(guess == labels)),
        "load": before,
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def warm(name: str) -> None:
    """Import what the peer needs."""
    needed = ["torch"]
    needed += ["torch.onnx", "onnxruntime.quantization"] if name.startswith("ort") else []
    needed += ["openvino"] if name.startswith(("ov", "nncf")) else []
    needed += ["nncf"] if name.startswith("nncf") else []
    needed += ["torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"] if name == "torchao_int8" else []
    for module in needed:
        importlib.import_module(module)


if __name__ == "__main__":
    print(json.dumps(prepare(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
