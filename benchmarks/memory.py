"""Memory: the most that commands hold, of a model of 300 MB and of 20,000 images, beside what these take themselves.

    python -m benchmarks.memory                       # six commands, one JSON line each
    python -m benchmarks.memory --only prune,images

The networks have random weights. Memory is that of the command and its processes together (their proportional set sizes:
what several map is counted once), looked at five times a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, limits

RESULTS = environment.ROOT / "benchmarks" / "results" / "memory.jsonl"
IMAGES = (20_000, 3, 64, 64)


def _encoder(*words: str) -> Callable[[Path], tuple[list[str], float]]:
    """A command on the encoder of 300 MB; gives it and the bytes of the model."""

    def command(folder: Path) -> tuple[list[str], float]:
        size = sum(t.nbytes for t in limits.huge()[0].parameters())
        name, *rest = words
        data = ["--data", "benchmarks.limits:data_huge", "--metric", "agreement"]
        return [name, "benchmarks.limits:huge", *data, *rest], size

    return command


def _images(*words: str) -> Callable[[Path], tuple[list[str], float]]:
    """A command on a small network and many images; gives it and the bytes of the images."""

    def command(folder: Path) -> tuple[list[str], float]:
        path = folder / "images.npz"
        drawn = np.random.default_rng(0).standard_normal(IMAGES, dtype=np.float32)
        np.savez(path, x=drawn)
        name, *rest = words
        return [name, "benchmarks.limits:small", "--data", str(path), "--metric", "agreement", *rest], drawn.nbytes

    return command


COMMANDS: dict[str, Callable[[Path], tuple[list[str], float]]] = {
    "quantize": _encoder("quantize", "--weights", "8"),
    "prune": _encoder("prune", "--macs", "1.2x"),
    "compress": _encoder("compress", "--max-drop", "2%", "--time-limit", "10m"),
    "images quantize": _images("quantize", "--weights", "8"),
    "images prune": _images("prune", "--macs", "1.3x"),
    "images train": _images("prune", "--macs", "1.3x", "--recover", "30s"),
}


def measured(name: str, threads: int) -> dict[str, Any]:
    """One command to its end."""
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        words, size = COMMANDS[name](folder)
        out = folder / ("out" if words[0] == "compress" else "out.pt2")
        command = [sys.executable, "-m", "tersor", *words, "--threads", str(threads), "--out", str(out)]
        env = {**os.environ, "TERSOR_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
        begin, peak, own = time.monotonic(), 0, 0
        with open(folder / "errors", "w+b") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=env, cwd=environment.ROOT)
            while process.poll() is None:
                together, alone = limits.held(process.pid)
                peak, own = max(peak, together), max(own, alone)
                time.sleep(0.2)
            errors.seek(0)
            last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        return {
            "command": " ".join(words[:1] + words[4:]),
            "given_bytes": size,
            "peak_bytes": peak,
            "own_peak_bytes": own,
            "times": peak / size,
            "seconds": time.monotonic() - begin,
            "exit_code": process.returncode,
            "said": "" if process.returncode == 0 else last,
        }
    finally:
        shutil.rmtree(folder)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, append one JSON line a command, print its row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(COMMANDS), help="of " + ", ".join(COMMANDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    print(
        "| command | given MB | peak MB | of the command alone | times | seconds |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for key in asked.only.split(","):
        line = environment.record(benchmark="memory", model=key, threads=asked.threads, seed=0)
        line |= measured(key, asked.threads)
        environment.append(asked.out, line)
        sizes = " | ".join(f"{line[n] / 1e6:.0f}" for n in ("given_bytes", "peak_bytes", "own_peak_bytes"))
        print(f"| {key} | {sizes} | {line['times']:.1f} | {line['seconds']:.0f} | {line['said']}", flush=True)


if __name__ == "__main__":
    main()
