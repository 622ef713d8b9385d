"""The report: to JSON and back, a page that stands alone, words that fit the numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tersor.errors import ArtifactError
from tersor.report import (
    ClassChange,
    Compared,
    Example,
    Executed,
    Figures,
    Interval,
    Layer,
    Regression,
    Report,
    Share,
    Tried,
)
from tersor.units import count, ms, number, points, quantity, signed, size, spread

EVIL = '<script>alert("1")</script> & "quoted" {{ 7 * 7 }}'
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def full() -> Report:
    regression = Regression(
        400, 0.01, 0.99, 0.002, 4, 1, 3, Interval(-0.01, -0.005, 0.0),
        (ClassChange(0, 200, 0.9, 0.91), ClassChange(1, 200, 0.92, 0.90)),
        (Example(7, 1, "class 1 (90 %)", "class 0", 2.5, PIXEL), Example(9, None, "0.1", "0.2", 0.1, "", (1.0, 2.5))),
    )  # fmt: skip
    return Report(
        model=EVIL,
        metric="accuracy",
        before=Figures(
            "eager fp32", {"": 0.9154}, Interval(1.5e-3, 1.6e-3, 1.7e-3), 1_080_000, 40_800_000, 269_722, 10**8
        ),
        after=Figures("onnxruntime int8", {"": 0.9146}, Interval(1.5e-4, 1.6e-4, 1.7e-4), 290_000, 40_800_000, 269_722),
        drop="accuracy 0.9154 -> 0.9146 (0.08 points worse, absolute)",
        budget="accuracy may drop by 0.50 points",
        limit=0.005,
        ratio=Interval(0.095, 0.1, 0.105),
        noise=Interval(0.99, 1.0, 1.01),
        verdict="faster",
        rounds=50,
        threads=2,
        target="OnnxRuntime('int8')",
        tried=(
            Tried("eager fp32", 1.6e-3, {"": 0.9154}, 0.0, 1_080_000),
            Tried("onnxruntime int8", 1.6e-4, {"": 0.9146}, 0.0008, 290_000),
            Tried("openvino int8", 1.5e-4, {"": 0.41}, 0.5, 280_000, "outside the budget"),
            Tried("inductor fp32", note=EVIL),
        ),
        layers=(
            Layer("conv1", (16, 3, 3, 3), "GPTQ(bits=8)", 8, 16, 12, 1e-4, 1728, 432),
            Layer(EVIL, (10, 64)),
        ),
        work=(Share("conv1", 0.9, 0.4), Share("head", 0.1, None)),
        regression=regression,
        audit=(Executed("conv1", "Convolution", "i8"), Executed("head", "MatMul", "f32", "no kernel")),
        compared=(Compared("time", 1.5e-4, 1.6e-4, "seconds"), Compared("damage", 0.001, None, "nats")),
        machine={"cpu": "AMD EPYC", "flags": ["avx2"], "cores": 2, "memory": 24 << 30},
        versions={"torch": "2.13.0"},
        seeds={"split": 0},
        data={"data": "sha256 00"},
        load=(0.5, 0.7),
        cost={"seconds": 31.2, "bytes": 1e9},
        notes=("a note",),
        warnings=("a warning",),
    )


def least() -> Report:
    return Report("m", "mse", Figures("a"), Figures("b"))


class Page(HTMLParser):
    """Tags that are open, and every attribute value."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [value or "" for _, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [full(), least()], ids=["full", "least"])
def test_json_and_back_is_the_identity(report: Report) -> None:
    text = json.dumps(report.to_json(), allow_nan=False)
    assert Report.from_json(json.loads(text)) == report


def test_numbers_that_are_not_finite_become_nothing() -> None:
    report = replace(full(), compared=(Compared("x", math.nan, math.inf),), limit=math.inf)
    again = Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
    assert again.compared == (Compared("x", None, None),)
    assert again.limit is None


def change(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *way, last = path.split(".")
    inner = content
    for name in way:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("tried", "x", "has str at report.tried"),
        ("batch", "1", "has str at report.batch"),
        ("after.nbytes", 1.5, "has float at report.after.nbytes"),
        ("layers.0.shape", [1, "2"], r"has str at report.layers\[0\].shape\[1\]"),
        ("more", 1, "unknown field 'more' at report"),
        ("before", {}, "lacks a field at report.before"),
        ("machine", [], "has list at report.machine"),
        ("limit", 10**400, "has int at report.limit"),
    ],
)
def test_a_damaged_record_is_a_sentence(path: str, value: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        Report.from_json(change(full().to_json(), path, value))


@pytest.mark.parametrize("report", [full(), least()], ids=["full", "least"])
def test_the_page_stands_alone_and_is_well_formed(report: Report) -> None:
    html = report.to_html()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not [v for v in page.values if "//" in v]
    assert not re.search(r"@import|url\(", html)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_strings_of_the_users_are_escaped() -> None:
    html = full().to_html()
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 4
    assert "{{ 7 * 7 }}" in html
    evil_class = replace(full(), before=replace(full().before, name='"><img src=x onerror=alert(1)>'))
    assert "<img src=x" not in evil_class.to_html()


def test_the_page_says_what_is_claimed() -> None:
    html = full().to_html()
    for said in (
        "10.00x faster [9.52, 10.53]",
        "1 of 2 heavy operators ran in i8; 1 in f32 (no kernel)",
        "3 became wrong, 1 became right",
        "paired 95 % interval [-1.00, +0.00]",
        "16 &rarr; 12",
        "outside the budget",
        "a warning",
        PIXEL,
        "1 2.5",
        "<svg",
        'class="chosen"',
    ):
        assert said in html, said


def test_the_text_table() -> None:
    text = full().to_text()
    assert text.splitlines()[0].split() == ["eager", "fp32", "onnxruntime", "int8", "change"]
    assert "0.16 ms [0.15, 0.17]" in text
    assert "3.72x smaller" in text
    assert "Warning: a warning" in text
    assert max(len(line) for line in text.splitlines()) < 130
    assert least().to_text()


def test_what_the_runtime_gave_and_what_compression_gave_stand_apart() -> None:
    same = Figures("onnxruntime fp32", {"": 0.9154}, Interval(1.7e-4, 1.8e-4, 1.9e-4), 1_070_000, 40_800_000, 269_722)
    report = replace(
        full(),
        unchanged=same,
        runtime=Interval(0.1, 0.1125, 0.12),
        runtime_verdict="faster",
        compression=Interval(0.8, 0.9, 1.05),
        compression_verdict="no difference",
    )
    said = (
        "Compared with eager fp32: 10.00x faster [9.52, 10.53]. Of that, from the runtime (unchanged model): 8.89x faster "
        "[8.33, 10.00]; from compression: no measurable difference [0.95x, 1.25x]."
    )
    assert report.shares() == said
    assert said in report.to_text()
    assert said in report.to_html()
    assert report.heads() == ("", "eager fp32", "unchanged in onnxruntime fp32", "onnxruntime int8", "by compression")
    rows = {row[0]: row[1:] for row in report.rows()}
    assert rows["file size"] == ("1.08 MB", "1.07 MB", "290 kB", "3.69x smaller")
    assert rows["median time per batch of 1"][-1] == "no measurable difference [0.95x, 1.25x]"
    assert all(len(row) == 5 for row in report.rows())
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.9, 0.9, "the same"), (0.0, -0.0, "the same"), (0.9, 0.91, "+0.01"), (0.9, 0.8, "-0.1")],
)
def test_no_change_has_no_sign(before: float, after: float, said: str) -> None:
    report = replace(least(), before=Figures("a", {"": before}), after=Figures("b", {"": after}))
    assert report.rows()[0][-1] == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (1000, 999, "0.1 % fewer"),
        (1000, 1000, "the same"),
        (1000, 500, "2.00x fewer"),
        (10**6, 10**6 + 1, "less than 0.1 % more"),
    ],
)
def test_a_ratio_that_is_about_one_is_said_in_percent(before: int, after: int, said: str) -> None:
    report = replace(least(), before=Figures("a", macs=before), after=Figures("b", macs=after))
    assert report.rows()[0][-1] == said


def test_a_dict_metric_has_a_row_for_each_entry() -> None:
    report = replace(least(), before=Figures("a", {"map": 0.5, "ar": 0.6}), after=Figures("b", {"map": 0.4, "ar": 0.7}))
    rows = report.rows()
    assert rows[0] == ("mse[map]", "0.5000", "0.4000", "-0.1")
    assert rows[1] == ("mse[ar]", "0.6000", "0.7000", "+0.1")


@pytest.mark.parametrize(
    ("ratio", "verdict", "said"),
    [
        (Interval(0.4, 0.5, 0.6), "faster", "2.00x faster [1.67, 2.50]"),
        (Interval(1.9, 2.0, 2.1), "slower", "2.00x slower [1.90, 2.10]"),
        (Interval(0.9, 0.97, 1.1), "no difference", "no measurable difference [0.91x, 1.11x]"),
        (Interval(0.9, 0.97, 0.99), "no difference", "no difference beyond the noise [1.01x, 1.11x]"),
        (None, "", ""),
    ],
)
def test_faster_is_said_only_where_it_was_measured(ratio: Interval | None, verdict: str, said: str) -> None:
    assert replace(least(), ratio=ratio, verdict=verdict).speed() == said


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (ms(0.000_153_6), "0.154 ms"),
        (ms(1.234), "1.23 s"),
        (spread(1.1, 1.25, 1.5), "1.25 s [1.1, 1.5]"),
        (size(999), "999 B"),
        (size(1080), "1.08 kB"),
        (size(999_600), "1.00 MB"),
        (size(123_456), "123 kB"),
        (size(12_345_678), "12.3 MB"),
        (size(2.5e12), "2500 GB"),
        (count(269_722), "270 k"),
        (count(40_800_000), "40.8 M"),
        (count(12), "12"),
        (points(0.9154), "91.54 %"),
        (number(0.91544), "0.9154"),
        (number(0), "0"),
        (number(12.3456), "12.346"),
        (number(0.000_023_456_7), "2.3457e-05"),
        (number(-0.0), "0"),
        (signed(-0.001) + signed(0.004), "+0.00+0.00"),
        (quantity(0.001, "seconds"), "1 ms"),
        (quantity(0.002, "nats"), "0.0020 nats"),
        (ms(None) + size(None) + count(None) + points(None) + number(None) + quantity(None, "nats"), ""),
    ],
)
def test_units(shown: str, said: str) -> None:
    assert shown == said
