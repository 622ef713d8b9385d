"""Faithful export: how often the runtime decides as our simulation of its file does, on the whole test part.

    python -m benchmarks.faithful --models resnet20,kws_dscnn --runtimes onnxruntime,openvino

Every matrix is in int8. The simulation is torch's arithmetic on the grids of the exported file; where it and the runtime
part, the first operator that differs is named. One JSON line a model and runtime goes to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, zoo
from benchmarks.cnn_cpu import made
from benchmarks.ours import INT8, exported, predict, prepare

WANTED = {"onnxruntime": 0.999, "openvino": 0.995}  # agreement
RESULTS = environment.ROOT / "benchmarks" / "results" / "faithful.jsonl"
_STEP = 50


def compare(key: str, runtime: str, folder: Path, threads: int, seed: int) -> dict[str, Any]:
    """Export, predict the test part in the runtime and in the simulation, and keep the comparison as a record."""
    made_files = prepare(key, runtime, 0, folder, 0.0, threads, seed)
    (folder / "record.json").unlink()  # of the files alone; a comparison that fails must leave none
    runner, (inputs, labels) = exported(folder / "artifact", threads, runtime), zoo.part(key, "test")
    theirs, ours = predict(runner, inputs), simulated(folder / "artifact", inputs, runtime)
    heavy = runner.audit().operators
    record = {
        "seconds": made_files["seconds"],
        "items": len(labels),
        "agreement": float(np.mean(theirs.argmax(1) == ours.argmax(1))),
        "accuracy": float(np.mean(theirs.argmax(1) == labels)),
        "accuracy_simulated": float(np.mean(ours.argmax(1) == labels)),
        "largest_difference": float(np.abs(theirs - ours).max() / np.abs(ours).max()),
        "heavy": len(heavy),
        "int8": sum(operator.precision == "i8" for operator in heavy),
        "not_int8": {operator.name: operator.reason for operator in heavy if operator.precision != "i8"},
        "parts_at": first_difference(folder / "artifact", inputs, runtime),
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def simulated(folder: Path, inputs: np.ndarray, runtime: str) -> np.ndarray:
    """The first output of our simulation of the exported file."""
    from tersor.hub.simulate import simulate

    steps = (np.array(inputs[i : i + _STEP]) for i in range(0, len(inputs), _STEP))
    return np.concatenate([simulate(folder / "model.onnx", (x,), runtime=runtime)[0] for x in steps])


def first_difference(folder: Path, inputs: np.ndarray, runtime: str) -> str:
    """The first operator, in order of execution, whose output differs; empty where none does."""
    raise NotImplementedError


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row a model and runtime."""
    rows = [
        f"{'':34} {'agreement':>10} {'wanted':>7} {'accuracy %':>10} {'simulated':>10} {'int8':>7}  first difference"
    ]
    for line in lines:
        name = f"{zoo.CASES[line['model']].title}, {line['runtime']}"
        if "error" in line:
            rows.append(f"{name:34} {line['error']}")
            continue
        rows.append(
            f"{name:34} {100 * line['agreement']:9.2f}% {100 * WANTED[line['runtime']]:6.1f}% "
            f"{100 * line['accuracy']:10.2f} {100 * line['accuracy_simulated']:10.2f} "
            f"{line['int8']:>3}/{line['heavy']:<3}  {line['parts_at'] or 'none'}"
        )
        rows += [f"    in float: {operator}: {reason}" for operator, reason in line["not_int8"].items()]
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Compare every model on every runtime."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithful", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(zoo.CASES), help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--runtimes", default=",".join(INT8), help="of " + ", ".join(INT8))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    lines = []
    for key in asked.models.split(","):
        for runtime in asked.runtimes.split(","):
            line = environment.record(benchmark="faithful", model=key, runtime=runtime, seed=asked.seed)
            folder = zoo.cache_folder() / "faithful" / line["commit"] / f"{key}-{runtime}"
            shutil.rmtree(folder, ignore_errors=True)
            command = ["benchmarks.faithful", "compare", key, runtime, str(folder), str(asked.threads), str(asked.seed)]
            lines.append(line | made(command, folder) | {"load_after": environment.load()})
            environment.append(asked.out, lines[-1])
    print(table(lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        key, runtime, folder, threads, seed = sys.argv[2:]
        compare(key, runtime, Path(folder), int(threads), int(seed))
    else:
        main()
