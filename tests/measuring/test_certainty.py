"""What a number of items can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.measuring.batches import Batches
from tersor.measuring.certainty import cautions, enough, exact, flips
from tersor.measuring.metrics import Metric, prepared
from tersor.measuring.regression import compare, paired_difference
from tersor.measuring.scores import built_in

ACCURACY = built_in("accuracy")


def of(items: int) -> Batches:
    return Batches.of(torch.eye(4)[torch.arange(items) % 4], torch.arange(items) % 4)


@pytest.mark.parametrize(
    ("hits", "items", "low", "high"),
    [(0, 8, 0, 0.3694), (8, 8, 0.6306, 1), (1, 10, 0.00253, 0.4450), (50, 100, 0.3983, 0.6017)],  # Clopper, Pearson
)
def test_exact_intervals_are_those_of_the_tables(hits: int, items: int, low: float, high: float) -> None:
    found = exact(hits, items)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert found.value == hits / items


def test_an_exact_interval_covers_the_truth_at_every_share() -> None:
    g = np.random.default_rng(0)
    for share in (0.01, 0.1, 0.5, 0.97):
        hits = g.binomial(20, share, 400)
        inside = [exact(int(h), 20).low <= share <= exact(int(h), 20).high for h in hits]
        assert np.mean(inside) > 0.92


def test_a_promise_on_eight_items_is_said_to_mean_little() -> None:
    (said,) = cautions(ACCURACY, 0.875, of(8), 0.005)
    assert "checked on 8 evaluation items, where one item counts 12.5 points" in said
    assert "up to 31.2 points may be lost on new data" in said
    assert "598 items" in said
    assert enough(0.005) == 598
    assert list(cautions(ACCURACY, 0.875, of(200), 0.005)) == []
    assert list(cautions(ACCURACY, 0.875, of(8), 0.0)) == []  # nothing is promised
    assert len(list(cautions(ACCURACY, 0.875, of(8), 0.2))) == 1
    (said,) = cautions(built_in("cosine"), 1.0, of(8), 0.005)
    assert said.startswith("The drop is checked on only 8 evaluation items, which says little about new data")
    own = Metric("mine", lambda p, b: 0.5, own=True)
    assert len(list(cautions(own, 0.5, of(8), 0.005))) == 1
    assert list(cautions(own, 0.5, of(60), 0.005)) == []


def test_items_that_are_known_by_heart_are_named() -> None:
    (said,) = cautions(ACCURACY, 1.0, of(400), 0.005)
    assert "right on all 400 evaluation items" in said
    assert "--eval-data" in said
    agreement = built_in("agreement")
    compared = prepared(agreement, of(400), lambda x: x)
    assert list(cautions(agreement, 1.0, compared, 0.005)) == []  # an original always agrees with itself


def test_flips_are_told_with_their_interval() -> None:
    data = of(40)
    found = compare(lambda x: x, lambda x: np.where(np.arange(len(x))[:, None] < 2, -x, x), data)
    (said,) = flips(found)
    assert said.startswith(
        "Of 40 evaluation items, each worth 2.5 points, 2 became wrong; on new data that is 0.61 to 17 "
    )
    assert flips(None) == ()


def test_no_flips_of_few_items_are_no_proof() -> None:
    """Resampling eight items of which none flipped would say [0, 0]."""
    same = np.ones(8, bool)
    found = paired_difference(same, same)
    assert (found.low, found.value, found.high) == (
        pytest.approx(-0.3694, abs=1e-4),
        0,
        pytest.approx(0.3694, abs=1e-4),
    )
