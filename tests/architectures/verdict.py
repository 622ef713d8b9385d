"""What is asked of an architecture: cut by 30 %, masked equals shrunk, smaller, and it still exports and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from architecture import Architecture
from torch import Tensor, nn
from zoo import batch

from tersor.errors import ExportError
from tersor.graph.macs import macs
from tersor.graph.model import Model, capture
from tersor.rewrites.shrink import mask, shrink
from tersor.site import Group, groups
from tersor.target import Compressed
from tersor.targets.onnxruntime import OnnxRuntime

CUT = 0.3
TOLERANCE = 1e-4  # of the largest output
SIZES = (2, 5)  # batches


@dataclass(frozen=True)
class Verdict:
    """What became of one architecture; sizes are (before, after), differences relative to the largest output."""

    pruned: tuple[Group, ...]
    left: tuple[Group, ...]
    share: float  # of matrix parameters that lie in prunable groups
    parameters: tuple[int, int]
    macs: tuple[int, int]
    difference: float  # masked against shrunk
    sensitivity: float  # how much outputs differ between the items of a batch
    exported: float | None  # ONNX Runtime against torch; None where the exporter refuses
    refusal: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


def judge(architecture: Architecture, folder: Path) -> Verdict:
    """Capture, cut every prunable group, compare, export to the empty `folder` and run."""
    model = capture(*architecture.built())
    found = groups(model)
    pruned = [g for g in found if g.refused is None and not g.counted]
    left = [g for g in found if g not in pruned]
    keep = {g.name: kept(g) for g in pruned}
    shrunk, masked = shrink(model, keep), mask(model, keep)
    flats = [batch(model, size) for size in SIZES]
    exported, refusal = through_onnx(shrunk, folder)
    return Verdict(
        tuple(pruned),
        tuple(left),
        share(model, pruned),
        (parameters(model), parameters(shrunk)),
        (sum(macs(model).values()), sum(macs(shrunk).values())),
        max(difference(masked.run(*flat), shrunk.run(*flat)) for flat in flats),
        sensitivity(shrunk.run(*flats[1])),
        exported,
        refusal,
        {g.name: g.refused or f"counted by {', '.join(g.counted)}" for g in left},
    )


def kept(group: Group) -> list[int]:
    """Seven blocks of ten, at least one, spread over the group."""
    count = max(1, round((1 - CUT) * group.blocks))
    order = torch.randperm(group.blocks, generator=torch.Generator().manual_seed(group.blocks))
    return sorted(order[:count].tolist())


def share(model: Model, found: Sequence[Group]) -> float:
    """The share of the values of all matrices (parameters of two or more axes, tied ones once) that lie in these groups."""
    inside: dict[int, Tensor] = {}
    for _, tensor in model.tensors():
        if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
            inside.setdefault(tensor.data_ptr(), torch.zeros(tensor.shape, dtype=torch.bool))
    for group in found:
        for member in group.members:
            tensor = model.tensor(member.tensor)
            if tensor.data_ptr() in inside and tensor.ndim > 1:
                at = torch.tensor(sorted({i for block in member.positions for i in block}))
                inside[tensor.data_ptr()].index_fill_(member.axis, at, True)
    total = sum(each.numel() for each in inside.values())
    return sum(int(each.sum()) for each in inside.values()) / max(total, 1)


def parameters(model: Model) -> int:
    """Values of all parameters, tied ones once."""
    return sum({t.data_ptr(): t.numel() for _, t in model.tensors() if isinstance(t, nn.Parameter)}.values())


def difference(wanted: Sequence[Tensor], seen: Sequence[Tensor]) -> float:
    """The largest difference of any value, relative to the largest wanted one; infinite where shapes differ or with NaN."""
    worst = 0.0
    for a, b in zip(wanted, seen, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a - b).all()):
            return float("inf")
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
    return worst


def sensitivity(outputs: Sequence[Tensor]) -> float:
    """How much the outputs of different items differ, relative to the largest."""
    return max(float((y - y.mean(0)).abs().max() / y.abs().max().clamp_min(1e-30)) for y in outputs)


def through_onnx(model: Model, folder: Path) -> tuple[float | None, str]:
    """ONNX Runtime's outputs against torch's, relative; or why the exporter refuses."""
    target = OnnxRuntime()
    try:
        target.export(Compressed(model), folder)
    except ExportError as refusal:
        return None, str(refusal)
    runner = target.load(folder, threads=1)
    worst = 0.0
    for size in SIZES:
        flat = batch(model, size)
        seen = [torch.from_numpy(y) for y in runner.predict(*(x.numpy() for x in flat))]
        worst = max(worst, difference(model.run(*flat), seen))
    return worst, ""
