"""How finely a runtime rewards fewer channels.

Vector units work on 4, 8 or 16 channels at once, and layouts pad to them: 57 channels can cost what 64 do, or more. So
convolutions are timed whose widths are multiples of just 1, of 2, 4, 8, 16 and 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from tersor.graph.model import capture
from tersor.target import Compressed, Target
from tersor.trials import Candidate, time_side_by_side, try_out

WIDTHS = {1: 57, 2: 58, 4: 60, 8: 56, 16: 48, 32: 64}  # channels, by the largest power of two that divides them
NEARLY = 0.9  # of the best speed is good enough
SIDE, DEPTH, ROUNDS = 16, 3, 20


def rewarded(targets: Sequence[Target], threads: int, scratch: Path) -> int:
    """The least multiple of channels at which each target that runs here multiplies nearly as fast as at any other.

    At a batch of one, in whatever precision the targets have and dense weights allow. 1 where no target runs.
    Cost: some seconds a target.
    """
    return max((least(_speeds(t, threads, scratch / str(i))) for i, t in enumerate(targets)), default=1)


def least(speeds: Mapping[int, float]) -> int:
    """The smallest multiple with at least `NEARLY` the best speed; 1 where nothing is known."""
    best = max(speeds.values(), default=0.0)
    return min((multiple for multiple, speed in speeds.items() if speed >= NEARLY * best), default=1)


def _speeds(target: Target, threads: int, scratch: Path) -> dict[int, float]:
    """Multiply-accumulates a second, but for a factor, by multiple; empty where the target does not run here."""
    example = torch.randn(2, 3, SIDE, SIDE)  # two items, as a capture needs
    trials = [
        try_out(
            Candidate(str(multiple), target, Compressed(capture(_network(width), (example,)))), scratch / str(width)
        )
        for multiple, width in WIDTHS.items()
    ]
    if any(trial.refused is not None for trial in trials):
        return {}
    race = time_side_by_side(trials, [example[:1].numpy()], threads=threads, rounds=ROUNDS, scratch=scratch)
    return {multiple: width**2 / race.median(str(multiple)) for multiple, width in WIDTHS.items()}


def _network(width: int) -> nn.Module:
    convolutions = (nn.Conv2d(width if i else 3, width, 3, padding=1) for i in range(DEPTH + 1))
    return nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, nn.ReLU()))).eval()
