"""The benchmarks' arithmetic and data: no peer is run and nothing is timed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cnn_cpu, environment, faithful, figures, ours, peers, zoo
from benchmarks.peers import PEERS, arguments

ROW = {"title": "them", "accuracy": 0.9154, "seconds": 1.25, "bytes": 371_000, "to_most_accurate_peer": [0, 0, 0]}
TIME = {"seconds": 0.0015, "interval": [0.001, 0.002], "ratio": [0.9, 1.0, 1.1], "rounds": 60}


def line(**changed: object) -> dict:
    cell = {"best_peer": "them", "times": {"them": TIME}, "control": {"of": "them", **TIME}, "promises": {}}
    whole = {
        "model": "resnet20",
        "items": 5000,
        "threads": 2,
        "rounds": 60,
        "commit": "abc",
        "load_before": [0.1, 0, 0],
        "load_after": [1.5, 0, 0],
        "batches": [1],
        "rows": {"them": ROW},
        "cells": {"1": cell},
        "capped": {"rounds": 10, "contenders": {}},
    }
    return whole | changed


def test_a_paired_interval_is_that_of_drawing_items() -> None:
    random = np.random.default_rng(3)
    a, b = random.random(400) < 0.9, random.random(400) < 0.8
    draws = random.integers(400, size=(4000, 400))
    wanted = np.percentile(100 * (a[draws].mean(1) - b[draws].mean(1)), [2.5, 97.5])
    low, value, high = figures.paired(a, b)
    assert value == pytest.approx(100 * (a.mean() - b.mean()), abs=1e-3)
    assert np.allclose([low, high], wanted, atol=0.6)


def test_equal_answers_have_no_interval() -> None:
    right = np.arange(100) % 3 > 0
    assert figures.paired(right, right) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("ratio", "difference", "said"),
    [
        ([0.8, 0.9, 1.0], [-0.2, -0.1, 0.1], "met"),
        ([1.0, 1.1, 1.2], [-0.2, -0.1, 0.1], "met"),
        ([1.03, 1.1, 1.2], [-0.2, -0.1, 0.1], "misses time"),
        ([0.8, 0.9, 1.0], [-0.3, -0.2, -0.1], "misses accuracy"),
        ([1.03, 1.1, 1.2], [-0.3, -0.2, -0.1], "misses time and accuracy"),
    ],
)
def test_the_verdict_names_what_was_missed(ratio: list[float], difference: list[float], said: str) -> None:
    assert figures.verdict({"ratio": ratio}, {"to_most_accurate_peer": difference}) == said


def test_the_table_shows_every_figure() -> None:
    text = figures.table(line())
    for shown in ("91.54", "1.500", "1.00 [0.90, 1.10]", "371", "A/A control", "load 0.10 before, 1.50 after", "abc"):
        assert shown in text
    assert "*" not in text


def test_the_table_says_who_was_capped_and_who_failed() -> None:
    capped = {"rounds": 10, "contenders": {"1": ["them"]}}
    text = figures.table(line(capped=capped, rows={"them": ROW, "us": {"title": "us", "error": "BudgetError: no"}}))
    assert "1.500*" in text
    assert "10 rounds instead of 60" in text
    assert "BudgetError: no" in text


def test_halves_do_not_overlap_and_odd_items_are_the_test() -> None:
    inputs, labels = np.arange(1000).reshape(1000, 1), np.arange(1000)
    parts = zoo._halves(inputs, labels)
    seen = {name: set(y.tolist()) for name, (_, y) in parts.items()}
    assert seen["test"] == set(range(1, 1000, 2))
    assert seen["search"] | seen["held"] == set(range(0, 1000, 2))
    assert not seen["search"] & seen["held"]
    assert seen["calibration"] == seen["search"]  # peers see as many items as we do
    assert not seen["calibration"] & seen["test"]


def test_every_contender_can_be_called_from_json(tmp_path: Path) -> None:
    for peer in PEERS.values():
        given = arguments(peer, "resnet20", tmp_path, 1, 2)
        assert json.loads(json.dumps(given)) == given
        inspect.signature(peer.make).bind(**given)
        assert peer.make.__module__ == "benchmarks.peers"
    rows = {"tersor_b1": {"way": "auto", "batch": 1}, "tersor_b64": {"way": "auto", "batch": 64}}
    rows |= {"tersor_int8_openvino": {"way": "openvino", "batch": 0}, "eager": {}, "inductor": {"error": "no compiler"}}
    found = {c.name: c for c in cnn_cpu._contenders("resnet20", 64, rows, tmp_path, 2)}
    assert set(found) == {"tersor_b64", "tersor_int8_openvino", "eager"}
    for contender in found.values():
        module, _, function = contender.make.partition(":")
        make = getattr({"benchmarks.ours": ours, "benchmarks.peers": peers}[module], function)
        inspect.signature(make).bind(**contender.arguments)


def test_a_line_is_known_again_only_with_the_same_settings() -> None:
    settings = cnn_cpu.Settings(rounds=7)
    kept = environment.record(model="resnet20", **cnn_cpu._plain(settings))
    kept = json.loads(json.dumps(kept))
    assert cnn_cpu._known(kept, "resnet20", settings)
    assert not cnn_cpu._known(kept, "resnet56", settings)
    assert not cnn_cpu._known(kept, "resnet20", cnn_cpu.Settings(rounds=8))


def test_lines_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines.jsonl"
    assert environment.lines(path) == []
    for value in ({"a": 1}, {"b": [1.5, "ü"]}):
        environment.append(path, value)
    assert environment.lines(path) == [{"a": 1}, {"b": [1.5, "ü"]}]


@pytest.mark.realdata
def test_keyword_data_splits_by_index(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("TERSOR_DATA", str(shared_data))
    whole, labels = zoo.loaders().kws()
    inputs, found = zoo.part("kws_dscnn", "test")
    assert np.array_equal(inputs, whole.numpy()[1::2])
    assert np.array_equal(found, labels.numpy()[1::2])
    assert zoo.part("kws_dscnn", "calibration")[0].shape == (150, 1, 49, 10)
    assert zoo.sample("kws_dscnn", 64).flags.writeable


def test_the_table_of_faithfulness_names_what_parts_and_what_is_float() -> None:
    found = {"items": 250, "agreement": 0.996, "accuracy": 0.9, "heavy": 10, "int8": 9, "not_int8": {"fc": "no kernel"}}
    parts = {"node": "x_q", "differing": 2, "total": 100, "steps": 1.0}
    base = {"model": "kws_dscnn", "runtime": "openvino"}
    text = faithful.table([base | found | {"parts": parts}, base | found | {"parts": None}, base | {"error": "gone"}])
    for shown in ("99.60%", "99.5%", "9/10", "x_q: 2 of 100 codes, by at most 1 steps", "equal in every bit", "gone"):
        assert shown in text
    assert "in float: fc: no kernel" in text
