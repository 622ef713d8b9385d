"""`compress --recover`: what loses too much is trained, judged like everything else, and can be made again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import stripes
import yaml

import tersor
from tersor.errors import RecipeError
from tersor.graph.macs import macs
from tersor.recipe import read_recipe
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
