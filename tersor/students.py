"""A student made of its teacher: every axis narrower by the same share, and some of the residual branches left out.

What goes is structured OBS's choice, and what stays is refitted to what the teacher computed: the student begins with what
its teacher knows. `prune` finds better widths for the same multiply-adds; this is for a student whose shape is to be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from torch import Tensor

from tersor.calibrated import Calibrated
from tersor.errors import InputError
from tersor.fitting import Decisions
from tersor.graph.branches import branches, without
from tersor.narrowing import Lost
from tersor.site import groups
from tersor.target import Compressed
from tersor.units import several
from tersor.widths import curves


def scaled(ground: Calibrated, inputs: Sequence[Sequence[Tensor]], width: float, depth: float) -> Compressed:
    """The model of `ground` with the shares `width` of each axis' blocks and `depth` of the residual branches, rounded up.

    inputs: flat batches, of which some judge which branches are missed least, each alone. The width inside attention heads
    stays, for heads go. Raises `InputError` where there is nothing to scale. Cost: a pass over 256 items a branch, a sweep a
    group, and a fit.
    """
    model = ground.model
    gone = _least_missed(ground, inputs, depth)
    if gone:
        model = ground.fit(Decisions(drop=gone)).model
    open_groups = [g for g in groups(model) if g.refused is None and not g.counted and g.kind != "head_width"]
    if width < 1 and not open_groups:
        raise InputError("No axis of the teacher can be pruned; `tersor inspect` says why. Leave out width.")
    keep = {}
    if width < 1:
        profile = ground.measured(model) if gone else ground.profile
        swept = curves(model, profile, open_groups)
        blocks = {g.name: g.blocks for g in open_groups if g.name in swept}
        keep = {name: swept[name].kept(_share(width, count)) for name, count in blocks.items()}
    return ground.fit(Decisions(keep=keep, drop=gone))


def _least_missed(ground: Calibrated, inputs: Sequence[Sequence[Tensor]], depth: float) -> tuple[str, ...]:
    names = [branch.name for branch in branches(ground.model)]
    count = len(names) - _share(depth, len(names))
    if depth < 1 and not count:
        raise InputError(
            f"The teacher has {several(len(names), 'residual branch', 'residual branches')}, and keeping {100 * depth:.3g} % "
            "removes none; leave out depth."
        )
    if not count:
        return ()
    lost = Lost(ground.model, inputs)
    return tuple(sorted(names, key=lambda name: lost(without(ground.model, (name,))))[:count])


def _share(share: float, count: int) -> int:
    return ceil(share * count - 1e-9)
