"""Tersor's own rows, each made in a process of its own.

`auto` is the product: `tersor.compress` as a user calls it, once for each batch size. `onnxruntime` and `openvino` are
its int8 alone, on one runtime: the same profile, fit and export with every matrix in int8, and no search.

    python -m benchmarks.ours MODEL WAY BATCH FOLDER MAX_DROP THREADS SEED
        makes the files, predicts the test part, writes record.json
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import environment, zoo
from benchmarks.peers import STEP
from tersor.measuring.machine import folder_bytes

if TYPE_CHECKING:
    from tersor.target import Compressed, Runner, Target

AUTO = "auto"
INT8 = {"onnxruntime": "Tersor int8, ONNX Runtime", "openvino": "Tersor int8, OpenVINO"}
_BATCH = 64  # items per batch of the data that is given


def make_auto(key: str, folder: str, batch: int, threads: int) -> Callable[[], Any]:
    """One `predict` of the delivered artifact."""
    return _call(_delivered(Path(folder), threads), key, batch)


def make_int8(key: str, folder: str, batch: int, threads: int, runtime: str) -> Callable[[], Any]:
    """One `predict` of the int8 file in its runtime."""
    return _call(exported(Path(folder), threads, runtime), key, batch)


def compress(key: str, batch: int, folder: Path, max_drop: float, threads: int, seed: int) -> tuple[Path, str]:
    """Deliver an artifact below `folder` with the search's choice for `batch`; its runtime files, what was chosen."""
    import tersor

    out = folder / "artifact"
    tersor.compress(
        zoo.module(key),
        batches(key, "search"),
        metric="accuracy",
        max_drop=max_drop,
        target="auto",
        out=out,
        eval_data=batches(key, "held"),
        batch=batch,
        threads=threads,
        seed=seed,
    )
    chosen = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["target"]
    return out / "model", " ".join(chosen.values())


def int8(key: str, seed: int) -> Compressed:
    """Every matrix in int8, every activation on a grid, fitted as the search fits them."""
    from tersor.calibrated import PROFILE_ITEMS, QUANTISING_ITEMS, prepared
    from tersor.fitting import Decisions, fit
    from tersor.inputs import models
    from tersor.rewrites.fold_norms import fold_norms
    from tersor.search import technique
    from tersor.site import matrices

    inputs = [(x,) for x, _ in batches(key, "search")[: PROFILE_ITEMS // _BATCH]]
    folded = fold_norms(models.captured(models.bring(zoo.module(key)), (inputs[0], {})))
    model, profile = prepared(folded, inputs, seed)
    decisions = Decisions(keep={}, techniques={m.name: technique() for m in matrices(model)}, feeds="static")
    return fit(model, inputs[: QUANTISING_ITEMS // _BATCH], profile, decisions, seed=seed)


def prepare(key: str, way: str, batch: int, folder: Path, max_drop: float, threads: int, seed: int) -> dict[str, Any]:
    """Make the files, predict the test part with them, and keep both beside a record."""
    before = environment.load()
    shutil.rmtree(folder / "artifact", ignore_errors=True)
    zoo.part(key, "test")  # decoding and imports are not compression
    import tersor.pipeline  # noqa: F401

    os.environ["TERSOR_CACHE"] = str(folder / "cache")  # what another row measured or fitted is not at hand
    shutil.rmtree(folder / "cache", ignore_errors=True)
    begin = time.perf_counter()
    if way == AUTO:
        files, chosen = compress(key, batch, folder, max_drop, threads, seed)
    else:
        files, chosen = folder / "artifact", f"{way} int8"
        files.mkdir()
        int8_target(way).export(int8(key, seed), files)
    seconds = time.perf_counter() - begin
    runner = _delivered(folder / "artifact", threads) if way == AUTO else exported(files, threads, way)
    guess, labels = predict(runner, zoo.part(key, "test")[0]).argmax(1), zoo.part(key, "test")[1]
    np.save(folder / "guess.npy", guess)
    record = {
        "seconds": round(seconds, 3),
        "bytes": folder_bytes(files),  # what the runtime reads, as for the peers
        "accuracy": float(np.mean(guess == labels)),
        "load": before,
        "chosen": chosen,
        "precisions": _precisions(runner),
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def batches(key: str, name: str) -> list[tuple[Any, Any]]:
    """One part of the data as torch batches of (inputs, labels)."""
    import torch

    inputs, labels = zoo.part(key, name)
    return [
        (torch.from_numpy(np.array(inputs[i : i + _BATCH])), torch.from_numpy(labels[i : i + _BATCH]))
        for i in range(0, len(labels), _BATCH)
    ]


def predict(runner: Runner, inputs: np.ndarray) -> np.ndarray:
    """First outputs of a runner, STEP items at a time."""
    parts = [runner.predict(np.array(inputs[i : i + STEP]))[0] for i in range(0, len(inputs), STEP)]
    return np.concatenate(parts)


def _precisions(runner: Runner) -> dict[str, int]:
    found = [operator.precision for operator in runner.audit().operators]
    return {precision: found.count(precision) for precision in sorted(set(found))}


def _delivered(folder: Path, threads: int) -> Runner:
    import tersor

    return tersor.load(folder, threads=threads)


def exported(folder: Path, threads: int, runtime: str) -> Runner:
    """An int8 file in its runtime."""
    return int8_target(runtime).load(folder, threads)


def int8_target(runtime: str) -> Target:
    """The target that runs int8 files in `runtime`."""
    if runtime == "onnxruntime":
        from tersor.targets.onnxruntime import OnnxRuntime

        return OnnxRuntime("int8")
    from tersor.targets.openvino import OpenVINO

    return OpenVINO("int8")


def _call(runner: Runner, key: str, batch: int) -> Callable[[], Any]:
    x = zoo.sample(key, batch)
    return lambda: runner.predict(x)


if __name__ == "__main__":
    _, model, way, batch, folder, max_drop, threads, seed = sys.argv
    print(json.dumps(prepare(model, way, int(batch), Path(folder), float(max_drop), int(threads), int(seed))))
