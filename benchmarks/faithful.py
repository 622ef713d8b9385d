"""Faithful export: how often the runtime decides as our simulation of its file does, on the whole test part.

    python -m benchmarks.faithful --models resnet20,kws_dscnn --runtimes onnxruntime,openvino

Every matrix is in int8. Where runtime and simulation part, the first activation whose codes differ is named, and so is every
heavy operator that the runtime did not run in int8. One JSON line a model and runtime goes to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, zoo
from benchmarks.cnn_cpu import made
from benchmarks.ours import INT8, exported, int8_target, prepare

WANTED = {"onnxruntime": 0.999, "openvino": 0.995}  # agreement
RESULTS = environment.ROOT / "benchmarks" / "results" / "faithful.jsonl"


def compare(key: str, runtime: str, folder: Path, threads: int, seed: int) -> dict[str, Any]:
    """Export, predict the test part in the runtime and in the simulation, and keep the comparison as a record."""
    made_files = prepare(key, runtime, 0, folder, 0.0, threads, seed)
    (folder / "record.json").unlink()  # of the files alone; a comparison that fails must leave none
    found = int8_target(runtime).fidelity(folder / "artifact", [np.array(zoo.part(key, "test")[0])])
    if found is None:
        raise SystemExit(f"{runtime} has no simulation of its int8 files")
    heavy = exported(folder / "artifact", threads, runtime).audit().operators
    record = {
        "seconds": made_files["seconds"],
        "accuracy": made_files["accuracy"],
        **asdict(found),
        "heavy": len(heavy),
        "int8": sum(operator.precision == "i8" for operator in heavy),
        "not_int8": {operator.name: operator.reason for operator in heavy if operator.precision != "i8"},
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row a model and runtime."""
    rows = [f"{'':34} {'items':>6} {'agreement':>10} {'wanted':>7} {'accuracy %':>11} {'int8':>7}  first difference"]
    for line in lines:
        name = f"{zoo.CASES[line['model']].title}, {line['runtime']}"
        if "error" in line:
            rows.append(f"{name:34} {line['error']}")
            continue
        rows.append(
            f"{name:34} {line['items']:>6} {100 * line['agreement']:9.2f}% {100 * WANTED[line['runtime']]:6.1f}% "
            f"{100 * line['accuracy']:11.2f} {line['int8']:>3}/{line['heavy']:<3}  {_parts(line['parts'])}"
        )
        rows += [f"    in float: {operator}: {reason}" for operator, reason in line["not_int8"].items()]
    return "\n".join(rows)


def _parts(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none: equal in every bit"
    return f"{found['node']}: {found['differing']} of {found['total']} codes, by at most {found['steps']:g} steps"


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
