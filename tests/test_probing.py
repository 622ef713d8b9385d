"""Sensitivity: what one place alone costs, beside what the quadratic predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stripes
from torch import nn

import tersor
from tersor.errors import InputError
from tersor.probing import BITS
from tersor.sensed import Sensitivity


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


def test_outputs_move_about_as_predicted(found: Sensitivity) -> None:
    small = [p for p in found.points if p.granularity == "bits" and p.amount == 8]
    assert all(0 < p.seen < 1e-2 for p in small)
    groups = [place for place, _ in found.places("channels")]
    factors = found.factors([*groups, "elsewhere"])
    assert set(factors) == set(groups)
    half = {p.place: p for p in found.points if p.granularity == "channels" and p.amount == 0.5}
    for group, factor in factors.items():
        assert factor == pytest.approx(half[group].seen / half[group].damage)
        assert 0.1 < factor < 10  # the quadratic tells the order of magnitude
    for _, points in found.places("bits"):
        assert [p.seen for p in points] == sorted(p.seen for p in points)  # what is predicted to cost more moves more


def test_what_was_found_is_read_again(found: Sensitivity, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found.to_json()))
    assert Sensitivity.of(file) == Sensitivity.of(found) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "There is no file"), ("{", "cannot be read"), ('{"points": 3}', "is JSON, but not of a sensitivity")],
)
def test_another_file_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=rf"{said}.*tersor sensitivity MODEL --data DATA --json"):
        Sensitivity.of(file)


def test_of_another_model_it_is_refused(found: Sensitivity) -> None:
    with pytest.raises(InputError, match=r"sensitivity names .* this model can be pruned at conv1"):
        found.factors(["conv1"])


def test_an_unknown_granularity_lists_the_known() -> None:
    with pytest.raises(InputError, match="no granularity atoms; choose one of channels, bits"):
        tersor.sensitivity(nn.Linear(2, 2), [], granularities=["atoms"])
