"""What int8 costs to make: seconds and peak memory, each tool in a process of its own, the tools taking turns.

    python -m benchmarks.cost                              # four networks, one JSON line each

Everybody sees the same calibration images (`zoo.part`) and writes its file. Imports, decoding and one small run before are
not counted; `before_bytes` is the memory that is taken then, `peak_bytes` the most that the process ever had.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import environment, zoo
from benchmarks.ours import INT8, int8_target
from benchmarks.peers import QUANTISERS, warm
from benchmarks.quantization import int8, prepared

RESULTS = environment.ROOT / "benchmarks" / "results" / "cost.jsonl"
TOOLS = (*(f"tersor_{runtime}" for runtime in INT8), *QUANTISERS)


def peak() -> int:
    """Bytes that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(tool: str, key: str, threads: int, seed: int) -> dict[str, Any]:
    """Make the file once, and say what it took."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    images = np.array(zoo.part(key, "calibration")[0])
    make = _made_by(tool, key, images, seed)
    with TemporaryDirectory() as folder:
        before, begin = peak(), time.perf_counter()
        make(Path(folder))
        return {"seconds": time.perf_counter() - begin, "before_bytes": before, "peak_bytes": peak()}


def _made_by(tool: str, key: str, images: np.ndarray, seed: int) -> Callable[[Path], None]:
    if tool in QUANTISERS:
        prepare = QUANTISERS[tool][1]
        warm(tool)
        return lambda folder: prepare(key, folder, images)
    target = int8_target(tool.removeprefix("tersor_"))
    zoo.module(key)(torch.from_numpy(images[:2]))

    def make(folder: Path) -> None:
        given = torch.from_numpy(images)
        target.export(int8(*prepared(key, given, seed), given, seed), folder)

    return make


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one model."""
    line = environment.record(
        benchmark="cost",
        model=key,
        rounds=given.rounds,
        threads=given.threads,
        seed=given.seed,
        images=len(zoo.part(key, "calibration")[1]),
    )
    taken: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
    for _ in range(given.rounds):
        for tool in TOOLS:
            words = ["--child", tool, "--models", key, "--threads", str(given.threads), "--seed", str(given.seed)]
            start = [sys.executable, "-m", "benchmarks.cost", *words]
            told = subprocess.run(start, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            taken[tool].append(json.loads(told.stdout.strip().splitlines()[-1]))
    line["rows"] = [
        {
            "tool": tool,
            "seconds": round(statistics.median(row["seconds"] for row in rows), 2),
            "seconds_of_each": [round(row["seconds"], 2) for row in rows],
            "before_bytes": max(row["before_bytes"] for row in rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
        }
        for tool, rows in taken.items()
    ]
    return line | {"load_after": environment.load()}


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    out = [
        f"{line['model']}, {line['images']} images",
        "",
        "| tool | seconds | peak MB | before MB |",
        "|---|---|---|---|",
    ]
    for row in line["rows"]:
        peak_mb, before_mb = row["peak_bytes"] / 1e6, row["before_bytes"] / 1e6
        out.append(f"| {row['tool']} | {row['seconds']:.1f} | {peak_mb:.0f} | {before_mb:.0f} |")
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, append one JSON line a model, print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(zoo.CASES), help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    if given.child:
        print(json.dumps(child(given.child, given.models, given.threads, given.seed)))
        return
    for key in given.models.split(","):
        line = run(key, given)
        environment.append(given.out, line)
        print(table(line), flush=True)


if __name__ == "__main__":
    main()
