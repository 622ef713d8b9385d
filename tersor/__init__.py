"""Tersor compresses a trained neural network for the machine where it will run, and proves the result.

    import tersor
    report = tersor.compress(model, data, max_drop="0.5%", out="small")
    runner = tersor.load("small")

The names below are loaded when they are first used: importing the package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersor.benchmarking import benchmark
    from tersor.delivery import load, verify
    from tersor.distilling import Distilled, distil
    from tersor.errors import (
        ArtifactError,
        BudgetError,
        DataError,
        DataWarning,
        ExportError,
        InputError,
        MetricError,
        MissingRuntime,
        ModelError,
        RecipeError,
        StorageError,
        TargetError,
        TersorError,
    )
    from tersor.inspection import inspect
    from tersor.pipeline import compress
    from tersor.probing import sensitivity
    from tersor.pruned import Pruned
    from tersor.pruning import prune
    from tersor.quantising import Quantized, quantize
    from tersor.recovery.wish import Recovery
    from tersor.report import Report
    from tersor.target import Runner, Target
    from tersor.technique import Technique

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BudgetError",
    "DataError",
    "DataWarning",
    "Distilled",
    "ExportError",
    "InputError",
    "MetricError",
    "MissingRuntime",
    "ModelError",
    "Pruned",
    "Quantized",
    "RecipeError",
    "Recovery",
    "Report",
    "Runner",
    "Sensitivity",
    "StorageError",
    "Target",
    "TargetError",
    "Technique",
    "TersorError",
    "benchmark",
    "compress",
    "distil",
    "inspect",
    "load",
    "prune",
    "quantize",
    "sensitivity",
    "verify",
]

_ELSEWHERE = {
    "Distilled": "distilling",
    "Pruned": "pruned",
    "Quantized": "quantising",
    "Recovery": "recovering",
    "Report": "report",
    "Runner": "target",
    "Sensitivity": "sensed",
    "Target": "target",
    "Technique": "technique",
    "benchmark": "benchmarking",
    "compress": "pipeline",
    "distil": "distilling",
    "inspect": "inspection",
    "load": "delivery",
    "prune": "pruning",
    "quantize": "quantising",
    "sensitivity": "probing",
    "verify": "delivery",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tersor' has no attribute '{name}'")
    return getattr(importlib.import_module(f"tersor.{_ELSEWHERE.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
