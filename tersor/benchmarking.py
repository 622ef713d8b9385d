"""Time delivered artifacts against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersor.delivery import load, probe
from tersor.errors import ArtifactError, InputError
from tersor.measuring.clock import Contender, Race, race
from tersor.scratch import scratch
from tersor.store.manifest import read


def benchmark(folders: Sequence[str | Path], batch: int = 1, threads: int = 0, rounds: int = 50) -> Race:
    """Time artifacts side by side on a batch of their recorded example, each in its own process; the first also against itself.

    threads: 0 uses as many as the first was measured with. Raises `ArtifactError` if a folder is no artifact, or if two take
    different inputs.
    """
    if batch < 1 or rounds < 5:
        raise InputError(f"batch is {batch} and rounds is {rounds}; they must be at least 1 and 5.")
    paths = [Path(folder) for folder in folders]
    for path in paths:
        load(path)  # checks every file, and warns on another machine
    count = threads or _recorded_threads(paths[0])
    with scratch() as folder:
        example = folder / "batch.npz"
        inputs = _example(paths[0], batch)
        for path in paths[1:]:
            other = _example(path, batch)
            if [a.shape for a in other] != [a.shape for a in inputs]:
                raise ArtifactError(
                    f"{path} takes different inputs than {paths[0]}; only models with the same inputs can be compared."
                )
        stored: dict[str, Any] = {f"{i:03d}": array for i, array in enumerate(inputs)}
        np.savez(example, **stored)
        contenders = [_contender(path, name, example, count) for path, name in zip(paths, names(paths), strict=True)]
        return race(contenders, rounds=rounds, control=contenders[0].name, threads=count)


def names(folders: Sequence[str | Path]) -> list[str]:
    """What the contenders of `benchmark` are called: the folders, numbered where one is given twice."""
    shown = [str(folder) for folder in folders]
    return [f"{name} #{shown[:i].count(name) + 1}" if name in shown[:i] else name for i, name in enumerate(shown)]


def _contender(folder: Path, name: str, example: Path, threads: int) -> Contender:
    target = read(folder).section("target", "file", "precision")
    arguments = {
        "folder": str((folder / "model").resolve()),
        "target": [target["file"], target["precision"]],
        "example": str(example),
        "threads": threads,
    }
    return Contender(name, "tersor.targets:timed", arguments)


def _recorded_threads(folder: Path) -> int:
    found = read(folder).section("report", "threads")["threads"]
    if type(found) is not int or not 0 <= found <= 4096:
        raise ArtifactError(f"The manifest of {folder} says that {found!r:.40} threads were used; give --threads.")
    return found


def _example(folder: Path, batch: int) -> list[np.ndarray]:
    return [np.resize(a, (batch, *a.shape[1:])) for a in probe(folder)[0]]
