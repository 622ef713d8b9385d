"""Small convolutional networks on this CPU: Tersor beside the peers, on time, accuracy, seconds to compress and bytes.

    python -m benchmarks.cnn_cpu --models resnet20,kws_dscnn --batches 1,64 --rounds 60

Every file is made in a process of its own, predicts the whole test part in its own runtime, and is then timed: all
contenders of one batch size take turns, each in a process of its own, with the best peer twice as the A/A control. A
short race of all of them comes first; who is more than `SLOW` times behind the best there (by the fastest turn, which a
busy machine disturbs least) keeps the times of that short race and is left out of the long one. One JSON line a model
goes to `--out` as soon as the model is finished; a model that has a line with the same commit, machine and settings is
not run again without `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, figures, zoo
from benchmarks.ours import AUTO, INT8
from benchmarks.peers import PEERS, arguments
from tersor.measuring.clock import AGAIN, Contender, Race, race

SLOW = 3.0
SHORT = 10  # rounds of the short race
RESULTS = environment.ROOT / "benchmarks" / "results" / "cnn_cpu.jsonl"


@dataclass(frozen=True)
class Settings:
    """What changes the figures."""

    batches: tuple[int, ...] = (1, 64)
    rounds: int = 60
    starts: int = 3
    threads: int = 2
    max_drop: float = 0.005
    seed: int = 0
    ours: bool = True
    peers: tuple[str, ...] = tuple(PEERS)


Row = dict[str, Any]


def run(key: str, settings: Settings) -> dict[str, Any]:
    """The line of one model: rows (a file each) and cells (a batch size each)."""
    line = environment.record(benchmark="cnn_cpu", model=key, **_plain(settings))
    folder = zoo.cache_folder() / "cnn_cpu" / line["commit"] / key
    rows = {name: _peer(key, name, folder / name) for name in settings.peers}
    if settings.ours:
        for name, way, batch in _our_rows(settings):
            rows[name] = _ours(key, way, batch, folder / name, settings)
    rights = _compare(key, rows, folder)
    line |= {"items": len(zoo.part(key, "test")[1]), "rows": rows, "cells": {}}
    capped: dict[str, list[str]] = {}
    for batch in settings.batches:
        cell, slow = _cell(key, batch, rows, folder, settings)
        cell["to_best_peer"] = _against(cell["best_peer"], rights)
        cell["promises"] = {n: figures.verdict(cell["times"][n], rows[n]) for n in cell["times"] if n not in PEERS}
        line["cells"][str(batch)] = cell
        capped |= {str(batch): slow} if slow else {}
    return line | {"capped": {"rounds": SHORT, "contenders": capped}, "load_after": environment.load()}


# ----------------------------------------------------------------------------------------------------- the files


def _peer(key: str, name: str, folder: Path) -> Row:
    return {"title": PEERS[name].title, **made(["benchmarks.peers", key, name, str(folder)], folder)}


def _our_rows(settings: Settings) -> list[tuple[str, str, int]]:
    """(name, way, batch) of each; int8 alone is one file for all batch sizes, written with batch 0."""
    best = [(f"tersor_b{batch}", AUTO, batch) for batch in settings.batches]
    return best + [(f"tersor_int8_{runtime}", runtime, 0) for runtime in INT8]


def _ours(key: str, way: str, batch: int, folder: Path, settings: Settings) -> Row:
    words = [str(w) for w in (key, way, batch, folder, settings.max_drop, settings.threads, settings.seed)]
    title = f"Tersor, for batch {batch}" if way == AUTO else INT8[way]
    return {"title": title, "way": way, "batch": batch, **made(["benchmarks.ours", *words], folder)}


def made(command: Sequence[str], folder: Path) -> Row:
    """The record of a file that is there, or that `command` makes now; its last word where it fails."""
    if not (folder / "record.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"  making {folder.name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=environment.ROOT, capture_output=True, text=True, check=False
        )
        if not (folder / "record.json").exists():
            (folder / "stderr.txt").write_text(done.stderr, encoding="utf-8")
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"error": said[-1]}
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


def _compare(key: str, rows: Mapping[str, Row], folder: Path) -> dict[str, np.ndarray]:
    """Right or wrong item by item; adds to every row its difference to the most accurate peer."""
    labels = zoo.part(key, "test")[1]
    rights = {name: np.load(folder / name / "guess.npy") == labels for name in rows if "error" not in rows[name]}
    best = max((name for name in rights if name in PEERS), key=lambda name: rights[name].mean())
    for name, difference in _against(best, rights).items():
        rows[name]["to_most_accurate_peer"] = difference
    return rights


def _against(best: str, rights: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    return {name: figures.paired(right, rights[best]) for name, right in rights.items()}


# ----------------------------------------------------------------------------------------------------- the clock


def _cell(key: str, batch: int, rows: Mapping[str, Row], folder: Path, settings: Settings) -> tuple[Row, list[str]]:
    """Times of all contenders at one batch size, and the names of those far behind, whose turns were capped."""
    contenders = list(_contenders(key, batch, rows, folder, settings.threads))
    print(f"  batch {batch}: {len(contenders)} contenders ...", file=sys.stderr, flush=True)
    short = _raced(contenders, min(SHORT, settings.rounds), None, settings)
    least = {c.name: min(short.samples[c.name]) for c in contenders}
    near = SLOW * min(least.values())
    front = [c for c in contenders if least[c.name] <= near or c.name == _best(short, contenders)]
    long = _raced(front, settings.rounds, _best(short, front), settings, settings.starts)
    best = _best(long, front)
    slow = [c.name for c in contenders if c not in front]
    times = {c.name: _time(short if c.name in slow else long, c.name, best) for c in contenders}
    noise = long.noise()
    assert noise is not None  # a control was asked for
    control = {"of": long.control, "seconds": long.median(f"{long.control}{AGAIN}"), "ratio": _triple(noise)}
    return {"best_peer": best, "times": times, "control": control, "load": [*short.load, *long.load]}, slow


def _contenders(key: str, batch: int, rows: Mapping[str, Row], folder: Path, threads: int) -> Iterable[Contender]:
    """Every file that was made, but for ours that were made for another batch size."""
    for name, row in rows.items():
        given = {"key": key, "folder": str(folder / name / "artifact"), "batch": batch, "threads": threads}
        if "error" in row or row.get("batch") not in (None, 0, batch):
            continue
        if name in PEERS:
            make = f"benchmarks.peers:{PEERS[name].make.__name__}"
            yield Contender(name, make, arguments(PEERS[name], key, folder / name, batch, threads))
        elif row["way"] == AUTO:
            yield Contender(name, "benchmarks.ours:make_auto", given)
        else:
            yield Contender(name, "benchmarks.ours:make_int8", given | {"runtime": row["way"]})


def _raced(
    contenders: Sequence[Contender], rounds: int, control: str | None, settings: Settings, starts: int = 1
) -> Race:
    return race(contenders, rounds=rounds, control=control, threads=settings.threads, seed=settings.seed, starts=starts)


def _best(done: Race, contenders: Sequence[Contender]) -> str:
    return min((c.name for c in contenders if c.name in PEERS), key=done.median)


def _time(done: Race, name: str, best: str) -> Row:
    seconds = done.seconds(name)
    return {
        "seconds": seconds.value,
        "interval": [seconds.low, seconds.high],
        "ratio": _triple(done.ratio(name, best)),
        "rounds": len(done.samples[name]),
    }


def _triple(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.low, interval.value, interval.high)]


# ---------------------------------------------------------------------------------------------- the command line


def _plain(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _known(line: Mapping[str, Any], key: str, settings: Settings) -> bool:
    wanted = {"model": key, "commit": environment.commit(), "machine": environment.machine(), **_plain(settings)}
    return all(line.get(name) == value for name, value in wanted.items())


def _words() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(zoo.CASES), help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--peers", default=",".join(PEERS), help="of " + ", ".join(PEERS))
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--starts", type=int, default=3, help="of every process, each for its part of the rounds")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-ours", action="store_true", help="time the peers alone")
    parser.add_argument("--again", action="store_true", help="run what has a line already, with fresh files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run the models that have no line yet, and print every table."""
    asked = _words().parse_args(words)
    batches = tuple(int(batch) for batch in asked.batches.split(","))
    settings = Settings(
        batches,
        asked.rounds,
        asked.starts,
        asked.threads,
        asked.max_drop,
        asked.seed,
        not asked.skip_ours,
        tuple(asked.peers.split(",")),
    )
    for key in asked.models.split(","):
        known = [line for line in environment.lines(asked.out) if _known(line, key, settings)]
        if asked.again:
            shutil.rmtree(zoo.cache_folder() / "cnn_cpu" / environment.commit() / key, ignore_errors=True)
        if asked.again or not known:
            print(f"{zoo.CASES[key].title}:", file=sys.stderr, flush=True)
            known = [run(key, settings)]
            environment.append(asked.out, known[-1])
        print("\n" + figures.table(known[-1]), flush=True)


if __name__ == "__main__":
    main()
