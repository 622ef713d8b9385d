"""Sensitivity: what one place alone costs, beside what the quadratic predicts."""

from __future__ import annotations

import json

import pytest
import stripes
from torch import nn

import tersor
from tersor.errors import InputError
from tersor.probing import BITS, Sensitivity


@pytest.fixture(scope="module")
def found() -> Sensitivity:
    return tersor.sensitivity(stripes.trained(), stripes.batches(), metric="cross_entropy", threads=1)


def test_every_place_has_its_points(found: Sensitivity) -> None:
    bits = dict(found.places("bits"))
    assert set(bits) == {"stem.0", "body.0", "head"}
    assert all([p.amount for p in points] == list(map(float, BITS)) for points in bits.values())
    channels = dict(found.places("channels"))
    assert channels
    assert all([p.amount for p in points] == [0.125, 0.25, 0.5, 0.75] for points in channels.values())
    assert (found.metric, found.lower, found.items) == ("cross_entropy", True, 240)


def test_less_costs_more(found: Sensitivity) -> None:
    for granularity in ("bits", "channels"):
        for _, points in found.places(granularity):
            assert [p.damage for p in points] == sorted(p.damage for p in points)
            assert found.loss(points[0]) < max(0.02, found.loss(points[-1]))
    assert all(abs(found.loss(p)) < 0.01 for _, points in found.places("bits") for p in points if p.amount == 8)


def test_the_most_sensitive_place_comes_first(found: Sensitivity) -> None:
    for granularity in ("bits", "channels"):
        sums = [sum(map(found.loss, points)) for _, points in found.places(granularity)]
        assert sums == sorted(sums, reverse=True)


def test_as_json_and_as_a_page(found: Sensitivity) -> None:
    assert json.loads(json.dumps(found.to_json()))["points"][0]["place"]
    page = found.to_html()
    assert "<polyline" in page
    assert "http" not in page.replace("http-equiv", "")
    assert all(place in page for place, _ in found.places("bits"))


def test_an_unknown_granularity_lists_the_known() -> None:
    with pytest.raises(InputError, match="no granularity atoms; choose of channels, bits"):
        tersor.sensitivity(nn.Linear(2, 2), [], granularities=["atoms"])
