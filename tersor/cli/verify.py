"""An artifact checked, as a record and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tersor.delivery import load, probe, verify
from tersor.errors import ArtifactError, MetricError
from tersor.inputs import data, metrics, models
from tersor.inputs.job import predict_as_brought
from tersor.inputs.reading import Taken
from tersor.measuring.metrics import Score, compares, prepared
from tersor.store.manifest import check
from tersor.units import number, several


def verified(
    folder: Path, spec: str | None, metric: str | None, model: str | None, threads: int
) -> tuple[dict[str, Any], str]:
    """What `tersor verify` says. Raises `ArtifactError` where the artifact is not what its manifest says."""
    recorded = check(folder).section("report", "metric", "after")
    if spec is None:
        found = verify(folder, threads=threads)
        files = several(len(found.manifest.files), "file")
        said = f"{folder} matches its manifest: {files}, and the recorded example gives the same outputs."
        return {"folder": folder, "verified": True, "difference": found.difference}, said
    chosen = metrics.bring(metric or recorded["metric"])
    source, taken = data.bring(spec), _taken(folder, threads)
    batches = data.batches(source, taken, labels=chosen.original == "unused")
    if model is not None:
        captured, module = models.captured_whole(models.bring(model), (taken.example, {}))
        batches = prepared(chosen, batches, predict_as_brought(module, captured))
    elif compares(chosen, batches):
        raise MetricError(
            f"The metric {chosen.name} compares with the original model, which the artifact does not contain; give it with "
            "--model."
        )
    found = verify(folder, batches, chosen, threads)
    before = _recorded(recorded) if chosen.name == recorded["metric"] else None
    record = {"folder": folder, "verified": True, "difference": found.difference, "metric": chosen.name}
    record |= {"score": found.score, "recorded": before.get("", before) if isinstance(before, dict) else before}
    items = several(len(batches), "item")
    said = f"{folder} matches its manifest; {chosen.name} on {items} of {spec}: {_shown(found.score)}"
    return record, f"{said}{f' (recorded on its own evaluation data: {_shown(before)})' if before else ''}."


def _recorded(report: Mapping[str, Any]) -> Score:
    try:
        found: Score = report["after"]["score"]
    except (TypeError, KeyError) as cause:
        raise ArtifactError("The manifest's report has no score after compression; compress again.") from cause
    return found


def _taken(folder: Path, threads: int) -> Taken:
    """What the artifact takes, from its recorded example."""
    inputs = load(folder, threads).inputs
    example, answers = (tuple(map(torch.from_numpy, each)) for each in probe(folder))
    return Taken(inputs, example, answers)


def _shown(score: Score | None) -> str:
    if isinstance(score, dict):
        return ", ".join(f"{name} {number(value)}" if name else number(value) for name, value in score.items())
    return number(score)
