"""What every benchmark records beside its figures: machine, load, commit, versions."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tersor.measuring.machine import machine
from tersor.measuring.machine import versions as measured_versions

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("nncf", "torch-pruning", "torchao", "onnxscript")  # beside what tersor itself records


def load() -> list[float]:
    """The load averages over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a figure depends on."""
    found = measured_versions()
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this repository, with "+changes" where the work tree differs from it; outside git what the variable
    TERSOR_COMMIT says, or "unknown"."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TERSOR_COMMIT", "unknown")
    return head + ("+changes" if changed else "")


def record(**settings: Any) -> dict[str, Any]:
    """The whole record, to be merged into a benchmark's JSON line; `settings` are its own (seeds, rounds, ...)."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": load(),
        **settings,
    }


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    """Every JSON line of `path`, none where it does not exist."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
