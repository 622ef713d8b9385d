"""The artifact: written aside, checked, exchanged into place; and what anyone can do with it later.

out/
  model/           what the runtime loads; needs no Tersor
  manifest.json    versions, seeds, hashes, plan, predicted and measured figures, sha256 of every file and of itself
  plan.yaml        the recipe: `--recipe plan.yaml` gives the same model files
  probe.npz        two example items and what the exported model answered
  report.html      for people
  README.md        the lines that run it without Tersor, which are those that were timed
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor import foreign
from tersor.errors import ArtifactError, DataError, InputError, reason
from tersor.hub.files import refuse_outside
from tersor.inputs import arrays
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Metric, Score, predictor
from tersor.report import Report
from tersor.store.files import repair, staging
from tersor.store.manifest import Manifest, check, other_cpu, seal
from tersor.target import Input, Runner
from tersor.targets import target_called, target_name
from tersor.trials import Trial, save_arrays

TOLERANCE = 1e-3  # of the probe's largest output: the same file in the same runtime on another CPU


def deliver(out: Path, trial: Trial, report: Report, recipe: str, fields: Mapping[str, Any], threads: int) -> None:
    """Put the tried artifact with its report into `out`, whole or not at all."""
    with staging(out) as folder:
        model = folder / "model"
        _copy(trial.folder, model)  # the very files that were measured
        runner = trial.candidate.target.load(model, threads)
        _write_probe(folder / "probe.npz", runner, trial)
        (folder / "plan.yaml").write_text(recipe, encoding="utf-8")
        (folder / "report.html").write_text(report.to_html(), encoding="utf-8")
        (folder / "README.md").write_text(_readme(trial, runner, report.batch, threads), encoding="utf-8")
        file, precision = target_name(trial.candidate.target)[:2]
        seal(folder, {**fields, "target": {"file": file, "precision": precision}, "report": report.to_json()})


def load(folder: str | Path, threads: int = 0) -> Runner:
    """The delivered model, in its own runtime.

    Raises `ArtifactError` where a file is not what the manifest says; warns on another CPU than it was measured on.
    """
    return _open(Path(folder), threads)[1]


@dataclass(frozen=True)
class Verified:
    """What `verify` found: everything is as the manifest says, and, where data was given, the scores of today."""

    manifest: Manifest
    difference: float  # largest deviation from the recorded outputs, relative to the largest of them
    score: Score | None


def verify(folder: str | Path, data: Batches | None = None, metric: Metric | None = None, threads: int = 0) -> Verified:
    """Check every file, run the recorded example again and, if data is given, evaluate the metric again.

    Raises `ArtifactError` where anything differs from the manifest.
    """
    manifest, runner = _open(Path(folder), threads)
    difference = _probe(Path(folder), runner)
    if difference > TOLERANCE:
        raise ArtifactError(
            f"{folder} loads, but its outputs differ from the recorded ones by {difference:.2g} of the largest, where at "
            f"most {TOLERANCE} is allowed; the runtime or the CPU differs: compress again on this machine."
        )
    score = None
    if data is not None and metric is not None:
        score = metric(predictor(runner.predict, runner.outputs), data)
    return Verified(manifest, difference, score)


def _open(folder: Path, threads: int) -> tuple[Manifest, Runner]:
    repair(folder)
    manifest = check(folder)
    elsewhere = other_cpu(manifest)
    if elsewhere is not None:
        warnings.warn(elsewhere, stacklevel=3)
    written = manifest.section("target", "file", "precision")
    try:
        target = target_called(str(written["file"]), str(written["precision"]))
    except InputError as cause:
        raise ArtifactError(f"{folder} was made for a target that this version of Tersor lacks: {cause}") from cause
    for name in manifest.files:
        if name.endswith(".onnx"):
            refuse_outside(folder / name)
    with foreign.reading(f"The model in {folder}", ArtifactError, "restore it, or compress again"):
        return manifest, target.load(folder / "model", threads)


def _copy(source: Path, target: Path) -> None:
    """A folder's files; unlike `shutil.copytree` it ends with the first error, which then says what the disk lacks."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _write_probe(path: Path, runner: Runner, trial: Trial) -> None:
    inputs = [np.asarray(t) for t in trial.candidate.compressed.model.example]
    arrays = {f"in_{i:03d}": a for i, a in enumerate(inputs)}
    arrays |= {f"out_{i:03d}": a for i, a in enumerate(runner.predict(*inputs))}
    save_arrays(path, arrays)


def probe(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The recorded example of an artifact: inputs, and what the model gave for them. Raises `ArtifactError`."""
    try:
        stored = arrays.read(folder / "probe.npz")
    except DataError as cause:
        raise ArtifactError(f"{folder} has no recorded example: {cause}") from cause
    inputs = [stored[k] for k in sorted(stored) if k.startswith("in_")]
    wanted = [stored[k] for k in sorted(stored) if k.startswith("out_")]
    if not inputs or not wanted:
        raise ArtifactError(f"{folder} has no recorded example in probe.npz; compress again.")
    strange = [a.dtype for a in (*inputs, *wanted) if a.dtype.kind not in "fiubc"]
    if strange:
        raise ArtifactError(f"{folder} has a recorded example of {strange[0]}, which are no numbers; compress again.")
    return inputs, wanted


def _probe(folder: Path, runner: Runner) -> float:
    inputs, wanted = probe(folder)
    try:
        found = runner.predict(*inputs)
    except Exception as cause:  # whatever a runtime makes of inputs that are not the model's
        raise ArtifactError(f"{folder} loads, but its model refuses the recorded example: {reason(cause)}") from cause
    if [w.shape for w in wanted] != [np.shape(f) for f in found]:
        raise ArtifactError(
            f"{folder} loads, but gives outputs of the shapes {', '.join(str(np.shape(f)) for f in found)}, where "
            f"{', '.join(str(w.shape) for w in wanted)} were recorded; compress again."
        )
    return max(_apart(w, np.asarray(f), folder) for w, f in zip(wanted, found, strict=True))


def _apart(wanted: np.ndarray, found: np.ndarray, folder: Path) -> float:
    """The largest deviation, relative to the largest recorded output. NaN is like nothing, not even like itself."""
    for what, values in (("gives", found), ("recorded", wanted)):
        bad = int(np.isnan(values).sum()) if values.dtype.kind in "fc" else 0
        if bad:
            raise ArtifactError(
                f"{folder} loads, but {'its outputs hold' if what == 'gives' else 'the recorded outputs hold'} {bad} NaN among "
                f"{values.size} values; it answers nothing: compress again."
            )
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(wanted) & np.isfinite(found)
    if not np.array_equal(wanted[~finite], found[~finite]):  # infinite on one side only, or of the other sign
        return float("inf")
    largest = max(float(np.abs(wanted[finite]).max(initial=0.0)), 1e-12)
    return float(np.abs(wanted[finite] - found[finite]).max(initial=0.0)) / largest


def _readme(trial: Trial, runner: Runner, batch: int, threads: int) -> str:
    example = [np.asarray(t) for t in trial.candidate.compressed.model.example]
    inputs = [
        Input(name, str(a.dtype), (batch, *a.shape[1:]) if a.ndim else ())
        for name, a in zip(runner.inputs, example, strict=True)
    ]
    lines = trial.candidate.target.usage(inputs, runner.outputs, threads)
    return (
        f"# {trial.name}\n\nMade by Tersor. The model runs without it: start these lines in the folder `model/`. "
        f"`report.html` shows what changed, `manifest.json` what was measured.\n\n```python\n{lines.strip()}\n```\n"
    )
