"""The whole way, on a small network that is trained here: delivered, verified, repeated, refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stripes
import torch
from torch import nn

from tersor import shelf
from tersor.delivery import load, verify
from tersor.errors import BudgetError, InputError, RecipeError
from tersor.fitting import Decisions
from tersor.measuring.batches import Batches
from tersor.pipeline import compress
from tersor.recipe import Recipe
from tersor.report import Report
from tersor.techniques.gptq import GPTQ


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return stripes.trained()


@pytest.fixture(scope="module")
def data() -> Batches:
    return Batches.of(*stripes.images(1200, 2), size=100)


@pytest.fixture(scope="module")
def delivered(trained: nn.Module, data: Batches, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("delivered") / "small"
    return out, compress(trained, data, max_drop="3%", target="onnxruntime", out=out, threads=1)


def test_the_artifact_is_what_the_report_claims(delivered: tuple[Path, Report]) -> None:
    out, report = delivered
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "manifest.json", "model", "plan.yaml", "probe.npz", "report.html",
    ]  # fmt: skip
    before, after = report.before.score[""], report.after.score[""]
    assert before > 0.9
    assert before - after <= 0.03 + 1e-9
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["report"]["after"]["score"][""] == after
    assert {t.name for t in report.tried} >= {"onnxruntime fp32", "onnxruntime int8"}
    assert [layer.name for layer in report.layers] == ["stem.0", "body.0", "head"]
    assert any("--eval-data evaluates on data of your own choice" in note for note in report.notes)


def test_an_integer_artifact_says_what_was_predicted_and_whether_it_is_faithful(
    trained: nn.Module, data: Batches
) -> None:
    report = compress(trained, data, max_drop="10%", eval_data=data, target="onnxruntime:int8", threads=1)
    assert not any("--eval-data" in note for note in report.notes)
    assert any("agrees with a simulation of its file on 100 % of 32 items" in note for note in report.notes)
    damage = next(c for c in report.compared if c.name == "loss increase per item")
    assert damage.predicted is not None
    assert damage.measured is not None
    assert {o.precision for o in report.audit} == {"i8"}


def test_it_verifies_and_runs(delivered: tuple[Path, Report], data: Batches) -> None:
    out, _ = delivered
    assert verify(out, threads=1).difference <= 1e-3
    logits = load(out, threads=1).predict(next(iter(data)).inputs[0].numpy())[0]
    assert logits.shape == (100, 4)
    assert (logits.argmax(1) == next(iter(data)).labels.numpy()).mean() > 0.8


def test_it_runs_without_tersor(delivered: tuple[Path, Report]) -> None:
    out, _ = delivered
    usage = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = (
        f"import sys\nsys.modules['tersor'] = None\nimport numpy as np\nx = np.zeros((3, 1, 8, 8), np.float32)\n{usage}"
    )
    code += "\nprint(outputs[0].shape)"
    said = subprocess.run([sys.executable, "-c", code], cwd=out / "model", capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "(3, 4)"


def test_a_recipe_gives_the_same_files(
    delivered: tuple[Path, Report], trained: nn.Module, data: Batches, tmp_path: Path
) -> None:
    out, _ = delivered
    again = tmp_path / "again"
    compress(trained, data, max_drop="3%", out=again, threads=1, recipe=out / "plan.yaml")
    assert _hashes(again / "model") == _hashes(out / "model")
    assert (again / "plan.yaml").read_text() == (out / "plan.yaml").read_text()


def test_a_large_fitted_model_lies_on_the_disk(
    trained: nn.Module, data: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = Decisions({"stem.0": tuple(range(8))}, {n: GPTQ(bits=8) for n in ("stem.0", "head")}, "static")
    path, put_aside, aside = tmp_path / "plan.yaml", shelf.put_aside, []
    path.write_text(Recipe(("onnxruntime", "int8"), decisions, 0, 900, 1).to_yaml())
    monkeypatch.setattr(shelf, "_LEAST", 0)
    monkeypatch.setattr(shelf, "is_memory", lambda _: False)
    monkeypatch.setattr("tersor.search.put_aside", lambda own: (aside.extend(own), put_aside(own))[1])
    for large, name in ((1e9, "in memory"), (0, "on the disk")):
        monkeypatch.setattr("tersor.memory.LARGE", large)
        compress(trained, data, max_drop=0.99, out=tmp_path / name, threads=1, recipe=path)
        assert bool(aside) == (large == 0)
    assert {tuple(t.shape) for t in aside} >= {(8, 1, 3, 3), (4, 8)}
    assert _hashes(tmp_path / "on the disk" / "model") == _hashes(tmp_path / "in memory" / "model")


def test_a_budget_out_of_reach_says_the_best(data: Batches, tmp_path: Path) -> None:
    """No candidate reproduces a metric that always falls."""
    calls: list[int] = []

    def falling(predict, batches) -> float:
        calls.append(1)
        return 1.0 / len(calls)

    out = tmp_path / "out"
    torch.manual_seed(0)
    with pytest.raises(
        BudgetError, match=r"within the allowed drop of 0.01 on held-out data.*the best there was .*--max-drop"
    ):
        compress(
            stripes.Small().eval(), data, metric=falling, max_drop=0.01, target="onnxruntime:fp32", out=out, threads=1
        )
    assert not out.exists()


def test_a_recipe_of_something_else_is_refused(trained: nn.Module, data: Batches, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("tersor_recipe: 1\ntarget: {file: onnxruntime, precision: int8}\n")
    with pytest.raises(RecipeError, match="seed"):
        compress(trained, data, recipe=path, threads=1)
    path.write_text("hello")
    with pytest.raises(RecipeError, match="tersor_recipe: 1"):
        compress(trained, data, recipe=path, threads=1)


def test_a_recipe_for_another_model_names_what_is_missing(trained: nn.Module, data: Batches, tmp_path: Path) -> None:
    decisions = Decisions(
        keep={"neck": (0,), "stem.0": (0, 99)},
        techniques={"stem.0": GPTQ(bits=8), "tail": GPTQ(bits=8)},
        feeds="static",
    )
    path = tmp_path / "plan.yaml"
    path.write_text(Recipe(("onnxruntime", "int8"), decisions, 0, 900, 1).to_yaml())
    wanted = (
        "the layer tail, the prunable group neck, blocks of the group stem.0 outside 0..15, which this model does not"
    )
    with pytest.raises(RecipeError, match=wanted):
        compress(trained, data, recipe=path, threads=1)


def test_unknown_target_lists_the_known(trained: nn.Module, data: Batches) -> None:
    with pytest.raises(InputError, match=r"no target 'tensorflow'; choose auto or any of eager"):
        compress(trained, data, target="tensorflow", threads=1)


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_numbers_are_arrays(delivered: tuple[Path, Report]) -> None:
    out, _ = delivered
    assert all(isinstance(a, np.ndarray) for a in load(out).predict(np.zeros((1, 1, 8, 8), np.float32)))
