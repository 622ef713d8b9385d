"""The demo: seeded, honest data; the whole of it only in the slow tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.cli import demo
from tersor.delivery import verify
from tersor.errors import InputError

pytest.importorskip("sklearn")


def test_the_scans_that_judge_were_never_trained_on() -> None:
    (x, y), (x_test, y_test) = demo.scans(seed=0)
    assert (len(x), len(x_test)) == (1198, 599)
    assert x.shape[1:] == (1, 8, 8)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert set(y.tolist()) == set(y_test.tolist()) == set(range(10))
    order = [demo.scans(seed)[0][1] for seed in (0, 0, 1)]
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])


def test_the_same_seed_trains_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    (x, y), _ = demo.scans(seed=0)
    state = torch.get_rng_state()
    first, second = (demo.trained(x[:256], y[:256], seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert 100_000 < sum(p.numel() for p in first.parameters()) < 200_000
    assert not first.training


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install tersor\[demo\]"):
        demo.scans(seed=0)


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    report = demo.demo(tmp_path / "out")
    assert report.before.score[""] > 0.96
    assert report.after.score[""] >= report.before.score[""] - 0.01
    assert verify(tmp_path / "out").difference < 1e-3
