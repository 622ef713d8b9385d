"""Limits: how far `compress` overruns its time limit, and how much memory it takes, beside the size of the model.

    python -m benchmarks.limits                            # five networks, 10 s, 30 s and 120 s each
    python -m benchmarks.limits --models huge --times 10

The networks have random weights: what they compute does not matter here. Wall time is that of the whole command, the start
of Python included; memory is the most that the command and its processes held together (their proportional set sizes: what
several map is counted once), looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import environment

RESULTS = environment.ROOT / "benchmarks" / "results" / "limits.jsonl"
TIMES = (10.0, 30.0, 120.0)
ITEMS = 1024


def tiny() -> tuple[nn.Module, Tensor]:
    """A few kilobytes."""
    return _of(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), 16)


def small() -> tuple[nn.Module, Tensor]:
    """Convolutions and norms, under 1 MB."""
    widths = [3, 32, 64, 64, 128]
    layers = [
        layer
        for inside, outside in pairwise(widths)
        for layer in (nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())
    ]
    return _of(lambda: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), 3, 64, 64)


def sequence() -> tuple[nn.Module, Tensor]:
    """An encoder of six layers, some 20 MB."""
    return _of(lambda: _Encoder(256, 6), 64, 256)


def wide() -> tuple[nn.Module, Tensor]:
    """Linear layers, some 70 MB."""
    return _of(
        lambda: nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 2048), nn.ReLU(), nn.Linear(2048, 10)),
        2048,
    )


def huge() -> tuple[nn.Module, Tensor]:
    """An encoder of 300 MB."""
    return _of(lambda: _Encoder(1024, 6), 32, 1024)


MODELS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    each.__name__: each for each in (tiny, small, sequence, wide, huge)
}


class _Encoder(nn.Module):
    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 8, 4 * width, 0.0, "gelu", batch_first=True) for _ in range(depth))
        )
        self.classes = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.layers(x).mean(1))


def _of(make: Callable[[], nn.Module], *shape: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return make().eval(), torch.randn(2, *shape)


def _data(shape: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, *shape, generator=generator) for _ in range(ITEMS // 64)]


def data_tiny() -> list[Tensor]:
    return _data((16,))


def data_small() -> list[Tensor]:
    return _data((3, 64, 64))


def data_sequence() -> list[Tensor]:
    return _data((64, 256))


def data_wide() -> list[Tensor]:
    return _data((2048,))


def data_huge() -> list[Tensor]:
    return _data((32, 1024))


def measured(model: str, seconds: float, threads: int) -> dict[str, Any]:
    """One command: how long it took, what it held, and how it ended."""
    folder = Path(tempfile.mkdtemp(prefix="limits-"))
    command = [sys.executable, "-m", "tersor", "compress", f"benchmarks.limits:{model}"]
    command += ["--data", f"benchmarks.limits:data_{model}", "--metric", "agreement", "--max-drop", "2%"]
    command += ["--time-limit", f"{seconds:g}s", "--threads", str(threads), "--out", str(folder / "out"), "--json"]
    env = {**os.environ, "TERSOR_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    begin, peak = time.monotonic(), 0
    with open(folder / "said", "w+b") as said, open(folder / "errors", "w+b") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=env, cwd=environment.ROOT)
        while process.poll() is None:
            peak = max(peak, held(process.pid)[0])
            time.sleep(0.2)
        wall = time.monotonic() - begin
        said.seek(0)
        errors.seek(0)
        told = json.loads(said.read() or b"{}")
        last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
    delivered = (folder / "out" / "manifest.json").exists()
    shutil.rmtree(folder)
    made = told.get("report", {})
    return {
        "limit": seconds,
        "wall": wall,
        "overrun": wall - seconds,
        "held": wall <= 1.2 * seconds + 30,
        "exit_code": process.returncode,
        "delivered": made.get("after", {}).get("name") if delivered else None,
        "said": next((note for note in made.get("notes", []) if "time limit" in note), "") if delivered else last,
        "peak_bytes": peak,
    }


def held(root: int) -> tuple[int, int]:
    """Bytes that a process and all that came of it hold, and it alone."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):  # it has just ended
                continue
    ours, fresh = {root}, {root}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh}
        ours |= fresh
    sizes = {each: _proportional(each) for each in ours}
    return sum(sizes.values()), sizes[root]


def _proportional(process: int) -> int:
    """Bytes that a process holds, of a page that several hold its part; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row a model and limit."""
    rows = [
        f"{'model':10} {'MB':>7} {'limit':>6} {'wall':>7} {'overrun':>8} {'held':>5} {'peak MB':>8}  delivered, or why not"
    ]
    for line in lines:
        for run in line["runs"]:
            rows.append(
                f"{line['model']:10} {line['bytes'] / 1e6:7.1f} {run['limit']:5.0f}s {run['wall']:6.1f}s "
                f"{run['overrun']:+7.1f}s {'yes' if run['held'] else 'NO':>5} {run['peak_bytes'] / 1e6:8.0f}  "
                f"{run['delivered'] or run['said'][:90]}"
            )
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Try every model under every limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--times", default=",".join(f"{t:g}" for t in TIMES), help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    lines = []
    for key in asked.models.split(","):
        line = environment.record(benchmark="limits", model=key, threads=asked.threads, seed=0)
        line["bytes"] = sum(t.nbytes for t in MODELS[key]()[0].parameters())
        line["runs"] = [measured(key, float(seconds), asked.threads) for seconds in asked.times.split(",")]
        line["load_after"] = environment.load()
        lines.append(line)
        environment.append(asked.out, line)
    print(table(lines))


if __name__ == "__main__":
    main()
