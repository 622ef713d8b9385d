"""The table of a search: what limits take off it, and that plans are tried before one is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import stripes
import torch
from torch import nn

from tersor.graph.model import Model, capture
from tersor.narrowing import Lost
from tersor.plan import Budget
from tersor.planners.knapsack import cost, knapsack
from tersor.pricing import Speeds, limited, price, weighed, widths
from tersor.profile import Profile, measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.search import LIMITS, Search
from tersor.techniques.gptq import GPTQ
from tersor.windows import narrowing


@pytest.fixture(scope="module")
def ground() -> tuple[Model, Profile, list[tuple[torch.Tensor]]]:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    body = [nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]
    batches = [(x,) for x, _ in stripes.batches()]
    model = fold_norms(capture(nn.Sequential(*stem, *body).eval(), (batches[0][0][:2],)))
    return model, measure(model, batches), batches


def test_limits_take_narrow_options_off_and_keep_what_the_others_cost(ground) -> None:
    model, profile, _ = ground
    cuts = widths(model, profile)
    whole = price(model, profile, [GPTQ(8)], Speeds(2.0, 1.0, 0.8), cuts)
    some = limited(whole, cuts, 0.5)
    names = {cut.row: {o.name for o in some.rows[cut.row]} for cut in cuts}
    assert names == {cut.row: {str(k) for k in cut.kept if k >= 0.5 * cut.group.blocks} for cut in cuts}
    assert len(whole.rows[cuts[0].row]) > len(some.rows[cuts[0].row])
    plan = knapsack(some, Budget(seconds=0.7))
    assert cost(whole, plan.choice) == pytest.approx(cost(some, plan.choice))
    assert knapsack(limited(whole, cuts, 0.0), Budget(seconds=0.7)) == knapsack(whole, Budget(seconds=0.7))


def test_of_several_plans_the_one_that_is_seen_to_lose_least(ground) -> None:
    model, profile, batches = ground
    job: Any = type("Job", (), {"calibration": [type("Batch", (), {"inputs": x}) for x in batches], "late": False})
    search = Search(job, model, bench=None, targets=[])  # type: ignore[arg-type]
    search.__dict__["ground"] = type("Ground", (), {"model": model, "profile": profile})
    search.cuts = widths(model, profile)
    table = price(model, profile, [GPTQ(8)], Speeds(2.0, 1.0, 0.9), search.cuts)
    budget = Budget(seconds=0.5)
    taken = search._plan(table, budget)
    assert cost(table, taken.choice)[1] <= 0.5
    lost, narrower = Lost(model, batches), narrowing(model, profile)
    seen = [lost(narrower(search._keep(knapsack(limited(table, search.cuts, least), budget)))) for least in LIMITS[:2]]
    assert lost(narrower(search._keep(taken))) <= min(seen) + 1e-9
    search.factors = {cut.group.name: 10.0 ** (-1) ** i for i, cut in enumerate(search.cuts)}
    scaled = weighed(table, search.cuts, search.factors)
    first = search.cuts[0].row
    assert [o.damage for o in scaled.rows[first]] == pytest.approx([10 * o.damage for o in table.rows[first]])
    assert lost(narrower(search._keep(search._plan(table, budget)))) <= lost(narrower(search._keep(taken))) + 1e-9
    search.cuts = ()
    uncut = replace(table, rows={n: row for n, row in table.rows.items() if not n.startswith("width")}, pairs=[])
    assert search._plan(uncut, Budget(seconds=1.5)) == knapsack(uncut, Budget(seconds=1.5))
