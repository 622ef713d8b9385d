"""`compress --recover`: what loses too much is trained, judged like everything else, and can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest
import stripes
import yaml

import tersor
from tersor.errors import RecipeError
from tersor.recipe import read_recipe
from tersor.trials import Workbench

HOW = {"length": "1epochs"}


@pytest.fixture
def only_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not float must be trained before it looks good."""
    plain = Workbench.promising
    monkeypatch.setattr(
        Workbench, "promising", lambda self, name: plain(self, name) and ("int8" not in name or "trained" in name)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("only_trained")
def test_what_loses_too_much_is_trained_and_its_recipe_gives_the_same_files(tmp_path: Path):
    out, again = tmp_path / "out", tmp_path / "again"
    data = stripes.batches()
    how = tersor.Recovery.of(**HOW)
    report = tersor.compress(
        stripes.trained(), data, max_drop="5%", target="onnxruntime", recover=how, out=out, threads=1, time_limit="5m"
    )
    names = [tried.name for tried in report.tried]
    assert any(name.startswith("onnxruntime int8") and name.endswith("trained") for name in names)
    assert report.training[0].steps == report.training[0].losses[-1].step
    page = report.to_html()
    assert "<h2>Training</h2>" in page
    assert "lost on held-out data" in page  # a curve from before the first step to after the only epoch
    written = yaml.safe_load((out / "plan.yaml").read_text())
    if "trained" not in report.after.name:  # float won the race on this machine: take the recipe of a trained one
        plan = dict.fromkeys(("stem.0", "body.0", "head"), "GPTQ(bits=7, symmetric=True, granularity=PerChannel())")
        written |= {
            "target": {"file": "onnxruntime", "precision": "int8"},
            "feeds": "static",
            "keep": {},
            "techniques": plan,
        }
        written["recover"] = {"loss": "kl(temperature=4)", **HOW}
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
