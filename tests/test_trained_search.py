"""`compress --recover`: what loses too much is trained, judged like everything else, and can be made again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import stripes
import torch
import yaml
from torch import nn

import tersor
from tersor.errors import RecipeError
from tersor.fitting import Decisions
from tersor.graph.macs import macs
from tersor.measuring.batches import Batches
from tersor.recipe import Recipe, read_recipe
from tersor.trials import Candidate, Trial, Workbench

HOW = {"length": "1epochs"}


@pytest.fixture
def only_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whatever is not float must be trained before it looks good; gives the multiply-adds of all that was exported."""
    tried: list[int] = []
    export = Workbench.export

    def seen(self: Workbench, candidates: Iterable[Candidate]) -> list[Trial]:
        candidates = list(candidates)
        tried.extend(sum(macs(c.compressed.model).values()) for c in candidates)
        return export(self, candidates)

    monkeypatch.setattr(Workbench, "export", seen)
    plain = Workbench.promising
    monkeypatch.setattr(
        Workbench, "promising", lambda self, name: plain(self, name) and ("int8" not in name or "trained" in name)
    )
    return tried


@pytest.mark.slow  # a minute and more on two cores
def test_what_loses_too_much_is_trained_and_its_recipe_gives_the_same_files(tmp_path: Path, only_trained: list[int]):
    out, again = tmp_path / "out", tmp_path / "again"
    data = stripes.batches()
    how = tersor.Recovery.of(**HOW)
    report = tersor.compress(
        stripes.trained(), data, max_drop="5%", target="onnxruntime:int8", recover=how, out=out, threads=1
    )
    assert "trained" in report.after.name
    assert report.after.score[""] > 0.9
    assert min(only_trained) < 0.9 * max(only_trained)  # what is bolder than int8 alone was really tried
    assert report.training[0].steps == report.training[0].losses[-1].step
    page = report.to_html()
    assert "<h2>Training</h2>" in page
    assert "drop on held-out data" in page  # a curve from before the first step to after the only epoch
    written = yaml.safe_load((out / "plan.yaml").read_text())
    assert written["recover"]["length"] == HOW["length"]
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(yaml.safe_dump(written))
    made = []
    for folder in (again, tmp_path / "third"):
        tersor.compress(stripes.trained(), data, max_drop="50%", recipe=recipe, out=folder)
        made.append({f.name: f.read_bytes() for f in (folder / "model").iterdir()})
        assert read_recipe((folder / "plan.yaml").read_text()).recover is not None
    assert made[0] == made[1]


def test_compress_trains_as_a_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same way on a network of two layers, without a search and in short races."""
    for name, value in {"ROUNDS": 5, "FINAL_ROUNDS": 5, "STARTS": 1, "REPEATS": 0}.items():
        monkeypatch.setattr(f"tersor.search.{name}", value)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)).eval()
    data, how = Batches.of(*stripes.images(400, 2), size=50), tersor.Recovery.of("30epochs")
    assert how is not None
    decisions = Decisions(keep={"1": tuple(range(12))})
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(Recipe(("onnxruntime", "fp32"), decisions, 0, 200, 1, recover=how.written).to_yaml())
    report = tersor.compress(
        (net, torch.zeros(2, 1, 8, 8)), data, metric="agreement", max_drop="50%", recipe=recipe, out=tmp_path / "out"
    )
    assert report.after.name == "onnxruntime fp32, pruned to 25 % of the multiply-adds, trained"
    assert report.training[0].steps == report.training[0].losses[-1].step
    assert report.training[0].judged[-1].value < report.training[0].judged[0].value  # of what was lost on held-out data
    written = read_recipe((tmp_path / "out" / "plan.yaml").read_text())
    assert (written.recover, written.decisions) == (how.written, decisions)


def test_a_recipe_whose_training_is_no_mapping_is_refused():
    text = "tersor_recipe: 1\ntarget: {file: eager, precision: fp32}\nseed: 0\ncalibration_items: 4\nthreads: 1\nrecover: [1]\n"
    with pytest.raises(RecipeError, match=r"says recover: \[1\]; wanted the settings of a training: correct that line"):
        read_recipe(text)


@pytest.mark.parametrize("more", [{}, {"rate": 0.01, "loss": "kl + 0.1*cross_entropy"}])
def test_a_recipe_trains_as_it_was_written(more):
    how = tersor.Recovery.of("1epochs", **more)
    assert how is not None
    text = yaml.safe_dump(
        {
            "tersor_recipe": 1,
            "target": {"file": "eager", "precision": "fp32"},
            **{"seed": 0, "calibration_items": 4, "threads": 1, "recover": dict(how.written)},
        }
    )
    again = read_recipe(text).recover
    assert again is not None
    assert tersor.Recovery.of(**again) == how
