"""Amounts as users write them."""

from __future__ import annotations

import pytest

from tersor.errors import InputError
from tersor.inputs import amounts


@pytest.mark.parametrize(
    ("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), (0.01, 0.01), (" 1 % ", 0.01), ("0", 0), ("5e-3", 0.005)]
)
def test_drops(text: str | float, value: float) -> None:
    assert amounts.drop(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("half", "'half' is no number; write 0.5% or 0.005"),
        ("", "is no number"),
        ("nan", "is no number"),
        ("2", "did you mean 2%?"),
        ("-1%", "outside 0% to 100%"),
        ("120%", "outside 0% to 100%"),
    ],
)
def test_drops_that_are_none(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        amounts.drop(text)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), (30.0, 30), ("2 min", 120)],
)
def test_times(text: str | float, value: float) -> None:
    assert amounts.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["soon", "10x", "-5m", "0", "1.2.3s", ""])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"write 90s, 10m or 1\.5h"):
        amounts.seconds(text)
