"""Tersor's own rows: `tersor.compress` called as a user would, in a process of its own.

python -m benchmarks.ours MODEL WAY BATCH FOLDER      compresses, predicts the test part, writes record.json
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, zoo
from benchmarks.peers import STEP
from tersor.measuring.machine import folder_bytes

WAYS = {
    "auto": "Tersor",
    "onnxruntime:int8": "Tersor int8, ONNX Runtime",
    "openvino:int8": "Tersor int8, OpenVINO",
}
_BATCH = 64  # items per batch of the data that compress is given


def make_ours(key: str, folder: str, batch: int, threads: int) -> Callable[[], Any]:
    """One `predict` of the delivered artifact."""
    import tersor

    runner = tersor.load(folder, threads=threads)
    x = zoo.sample(key, batch)
    return lambda: runner.predict(x)


def prepare(key: str, way: str, batch: int, folder: Path, max_drop: float, threads: int, seed: int) -> dict[str, Any]:
    """Compress for one batch size, predict the test part with what was delivered, and keep both beside a record."""
    import tersor

    before, out = environment.load(), folder / "artifact"
    shutil.rmtree(out, ignore_errors=True)
    model, data, held = zoo.module(key), _batches(key, "search"), _batches(key, "held")
    begin = time.perf_counter()
    tersor.compress(
        model,
        data,
        metric="accuracy",
        max_drop=max_drop,
        target=way,
        out=out,
        eval_data=held,
        batch=batch,
        threads=threads,
        seed=seed,
    )
    seconds = time.perf_counter() - begin
    guess, labels = _guess(key, out, threads), zoo.part(key, "test")[1]
    np.save(folder / "guess.npy", guess)
    record = {
        "seconds": round(seconds, 3),
        "bytes": folder_bytes(out / "model"),  # what the runtime reads, as for the peers
        "bytes_with_reports": folder_bytes(out),
        "accuracy": float(np.mean(guess == labels)),
        "load": before,
        "target": json.loads((out / "manifest.json").read_text(encoding="utf-8")).get("target"),
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def _batches(key: str, name: str) -> list[tuple[Any, Any]]:
    import torch

    inputs, labels = zoo.part(key, name)
    return [
        (torch.from_numpy(np.array(inputs[i : i + _BATCH])), torch.from_numpy(labels[i : i + _BATCH]))
        for i in range(0, len(labels), _BATCH)
    ]


def _guess(key: str, out: Path, threads: int) -> np.ndarray:
    import tersor

    runner, inputs = tersor.load(out, threads=threads), zoo.part(key, "test")[0]
    return np.concatenate(
        [runner.predict(np.array(inputs[i : i + STEP]))[0].argmax(1) for i in range(0, len(inputs), STEP)]
    )


if __name__ == "__main__":
    _, model, way, batch, folder, max_drop, threads, seed = sys.argv
    print(json.dumps(prepare(model, way, int(batch), Path(folder), float(max_drop), int(threads), int(seed))))
