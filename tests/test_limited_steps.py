"""A limit of time holds for prune, quantize, distil and sensitivity, too: what was reached by then comes out, or a sentence.
Real trainings and fits end where these tests say so, not where a clock does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import stripes
import torch
from torch import nn

import tersor
from tersor import pruning
from tersor.deadline import TimeUp
from tersor.errors import BudgetError, LimitWarning
from tersor.measuring.batches import Batches


def brought() -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)).eval()
    return model, Batches.of(*stripes.images(400, 2), size=50)


def sleeps() -> Any:
    time.sleep(60)


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (tersor.prune, {"macs": "2x"}),
        (tersor.quantize, {}),
        (tersor.distil, {"teacher": nn.Linear(4, 2), "width": "50%"}),
        (tersor.sensitivity, {}),
    ],
)
def test_a_function_that_sleeps_is_ended(command: Any, settings: dict[str, Any]) -> None:
    model = None if command is tersor.distil else nn.Linear(4, 2)
    begin = time.monotonic()
    with pytest.raises(BudgetError, match=r"limit of 0\.5 s expired at this stage: reading the .* Nothing was written"):
        command(model, sleeps, **settings, time_limit=0.5)
    assert time.monotonic() - begin < 30


def test_the_last_step_in_time_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up in the third of four steps."""
    fitted, calls = pruning._fitted, []

    def thrice(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise TimeUp
        return fitted(*args)

    monkeypatch.setattr("tersor.pruning._fitted", thrice)
    model, data = brought()
    out = tmp_path / "small.pt2"
    with pytest.warns(LimitWarning, match=r"limit of 1 h expired at this stage: .*; the result is that of step 2\."):
        found = tersor.prune(
            model, data, macs="4x", steps=4, max_drop="90%", metric="agreement", out=out, time_limit="1h", threads=1
        )
    assert len(found.steps) == 2
    assert found.size.macs == found.steps[1].size.macs < found.original.macs
    kept = torch.export.load(out).module()(data.parts[0].inputs[0])
    torch.testing.assert_close(kept, found.module(data.parts[0].inputs[0]))


def test_without_a_promise_an_earlier_step_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, calls = pruning._fitted, []

    def once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise TimeUp
        return fitted(*args)

    monkeypatch.setattr("tersor.pruning._fitted", once)
    out = tmp_path / "small.pt2"
    with pytest.raises(BudgetError, match=r"limit of 1 h expired .* Nothing was written\. Allow .* or more"):
        tersor.prune(*brought(), macs="4x", steps=4, metric="agreement", out=out, time_limit="1h", threads=1)
    assert not out.exists()


def test_what_was_quantized_comes_out_where_the_training_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(*_: Any, **__: Any) -> Any:
        raise TimeUp

    model, data = brought()
    settings = {"weights": 3, "metric": "agreement", "threads": 1}
    plain = tersor.quantize(model, data, **settings, recover="1epochs", time_limit="1h")
    monkeypatch.setattr("tersor.recovering.train", up)
    with pytest.warns(LimitWarning, match="the result is what was quantized, without the training"):
        found = tersor.quantize(model, data, **settings, recover="2epochs", time_limit="1h", out=tmp_path / "small.pt2")
    assert (tmp_path / "small.pt2").exists()
    assert plain.trained is not None
    assert found.trained is None
    assert not torch.equal(*(each.module(data.parts[0].inputs[0]) for each in (plain, found)))
