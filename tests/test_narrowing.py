"""Widths that are tried: inside the budget, nested, and no worse than what the quadratic alone would choose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.errors import BudgetError
from tersor.graph.likelihood import divergence
from tersor.graph.model import Model, capture
from tersor.narrowing import JUDGED, narrow, refitting, total
from tersor.profile import Profile, measure
from tersor.rewrites.shrink import mask
from tersor.site import groups, matrices
from tersor.widths import allocate, curves
from tersor.windows import narrowing


class Chain(nn.Module):
    """No residual: what one layer loses is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=g) for g in (1, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for layer in self.deep:
            x = F.relu(layer(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def ground() -> tuple[Model, list, Profile, list[str]]:
    torch.manual_seed(3)
    model = capture(Chain().eval(), (torch.randn(2, 3, 8, 8),))
    batches = [(torch.randn(64, 3, 8, 8),) for _ in range(4)]
    names = [g.name for g in groups(model) if g.refused is None]
    return model, batches, measure(model, batches), names


def macs_of(model: Model, profile: Profile, keep: dict) -> int:
    return total(narrowing(model, profile)(keep))


def test_each_budget_is_kept_and_steps_are_nested(ground):
    model, batches, profile, names = ground
    budgets = [share * total(model) for share in (0.7, 0.4)]
    steps = list(narrow(model, batches, profile, names, budgets, refit=refitting(model, batches, profile)))
    for keep, budget in zip(steps, budgets, strict=True):
        assert 0.8 * budget < macs_of(model, profile, keep) <= budget
    assert all(set(steps[1][name]) <= set(steps[0][name]) for name in steps[0])


def test_no_worse_than_what_the_quadratic_alone_chooses(ground):
    model, batches, profile, names = ground
    budget = 0.35 * total(model)
    (chosen,) = narrow(model, batches, profile, names, [budget], refit=refitting(model, batches, profile))
    found = [g for g in groups(model) if g.name in names]
    alone = allocate(model, curves(model, profile, found), found, budget)
    assert sum(len(b[0]) for b in batches) == JUDGED  # so all of the items are judged on
    narrower = narrowing(model, profile)
    lost = [sum(divergence(model.run(*x), narrower(keep).run(*x), x) for x in batches) for keep in (chosen, alone)]
    assert lost[0] <= lost[1]


def test_scaled_curves_make_proposals_too_and_are_not_taken_where_worse(ground):
    model, batches, profile, names = ground
    budget = 0.35 * total(model)
    narrower = narrowing(model, profile)

    def lost(factors: dict[str, float] | None) -> float:
        refit = refitting(model, batches, profile)
        (keep,) = narrow(model, batches, profile, names, [budget], refit=refit, factors=factors)
        return sum(divergence(model.run(*x), narrower(keep).run(*x), x) for x in batches)

    plain = lost(None)
    for seen in ({names[0]: 100.0, names[1]: 0.01}, dict.fromkeys(names, 3.0)):
        assert lost(seen) <= plain


def test_widths_are_multiples_where_asked(ground):
    model, batches, profile, names = ground
    budget = 0.5 * total(model)
    (keep,) = narrow(model, batches, profile, names, [budget], step=4, refit=refitting(model, batches, profile))
    assert {len(kept) % 4 for kept in keep.values()} == {0}


def test_a_budget_out_of_reach_says_what_is_reachable(ground):
    model, batches, profile, names = ground
    with pytest.raises(BudgetError, match=r"leaves \d.* multiply-adds; the budget is 1"):
        next(narrow(model, batches, profile, names, [1.0], refit=refitting(model, batches, profile)))


def test_the_repair_beats_removing_alone(ground):
    model, batches, profile, names = ground
    keep = {names[0]: tuple(range(8))}
    (x,) = batches[0]
    wanted = model.run(x)
    repaired, bare = narrowing(model, profile)(keep), mask(model, keep)
    assert {m.name: m.shape for m in matrices(repaired)} != {m.name: m.shape for m in matrices(model)}
    assert divergence(wanted, repaired.run(x), (x,)) < divergence(wanted, bare.run(x), (x,))
