"""Dynamic feeds in the search: offered where linear layers do the work, written into the recipe and the report."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor.errors import RecipeError
from tersor.feeds import Feeds
from tersor.fitting import Decisions, fit
from tersor.graph.model import capture
from tersor.measuring.batches import Batches
from tersor.pipeline import compress
from tersor.profile import measure
from tersor.recipe import Recipe, read_recipe
from tersor.report import Report
from tersor.search import mostly_linear, technique
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.trials import Candidate, answers, try_out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv(x.reshape(-1, 1, 4, 8))).mean((2, 3)))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def data(module: nn.Module) -> Batches:
    """Labels are what the module says."""
    x = torch.randn(600, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Batches.of(x, module(x).argmax(1), size=100)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out, module = tmp_path_factory.mktemp("searched") / "small", made(Mlp)
    targets = "onnxruntime:int8,openvino:int8"
    return out, compress(module, data(module), max_drop="30%", target=targets, out=out, threads=1)


def test_offered_where_linears_do_the_work_and_the_target_runs_them(searched: tuple[Path, Report]) -> None:
    names = {tried.name for tried in searched[1].tried}
    assert {"onnxruntime int8", "onnxruntime int8 dynamic", "openvino int8"} <= names
    assert not [name for name in names if name.startswith("openvino int8 dynamic")]
    assert next(t for t in searched[1].tried if t.name == "onnxruntime int8 dynamic").seconds


def test_a_cnn_is_not_mostly_linear() -> None:
    assert not mostly_linear(capture(made(Cnn), (torch.randn(2, 32),)))


@pytest.mark.slow
def test_not_offered_for_a_cnn() -> None:
    module = made(Cnn)
    report = compress(module, data(module), max_drop="50%", target="onnxruntime:int8", threads=1)
    assert "onnxruntime int8" in {tried.name for tried in report.tried}
    assert not [tried.name for tried in report.tried if "dynamic" in tried.name]


@pytest.mark.slow
def test_a_dynamic_recipe_gives_the_same_files(tmp_path: Path) -> None:
    module, asked = made(Mlp), tmp_path / "asked.yaml"
    asked.write_text(dynamic_recipe("onnxruntime").to_yaml(), encoding="utf-8")
    first, second = tmp_path / "first", tmp_path / "second"
    report = compress(module, data(module), max_drop="30%", out=first, threads=1, recipe=asked)
    compress(module, data(module), max_drop="30%", out=second, threads=1, recipe=first / "plan.yaml")
    assert "feeds: dynamic" in (first / "plan.yaml").read_text(encoding="utf-8")
    assert (first / "plan.yaml").read_bytes() == (second / "plan.yaml").read_bytes()
    assert hashes(first / "model") == hashes(second / "model")
    assert {layer.technique for layer in report.layers} == {f"{technique()!r}, dynamic feed"}
    assert {o.precision for o in report.audit} == {"i8"}


def test_a_target_that_runs_static_feeds_only_is_named(tmp_path: Path) -> None:
    module, asked = made(Mlp), tmp_path / "asked.yaml"
    asked.write_text(dynamic_recipe("openvino").to_yaml(), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"has feeds: dynamic, which openvino int8 does not run; correct that line"):
        compress(module, data(module), threads=1, recipe=asked)


@pytest.mark.parametrize("feeds", ["none", "static", "dynamic"])
def test_a_recipe_reads_what_it_wrote(feeds: Feeds) -> None:
    recipe = Recipe(("onnxruntime", "int8"), Decisions(techniques={"a": technique()}, feeds=feeds), 3, 100, 1)
    assert read_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("feeds", ["true", "sometimes", "[]"])
def test_unknown_feeds_are_refused(feeds: str) -> None:
    text = dynamic_recipe("onnxruntime").to_yaml().replace("feeds: dynamic", f"feeds: {feeds}")
    with pytest.raises(RecipeError, match=r"says feeds: .*; wanted one of none, static, dynamic: correct that line"):
        read_recipe(text)


def test_a_dynamic_file_is_judged_as_it_will_be_run(tmp_path: Path) -> None:
    """An item alone and beside a much larger one has different grids."""
    module = made(Mlp)
    model = capture(module, (torch.randn(2, 32),))
    x = torch.randn(4, 32) * torch.tensor([[1.0], [1.0], [1.0], [100.0]])
    decisions = Decisions(techniques=dict.fromkeys("abc", technique()), feeds="dynamic")
    compressed = fit(model, [(x,)], measure(model, [(x,)]), decisions)
    trial = try_out(Candidate("dynamic", OnnxRuntime("int8"), compressed), tmp_path / "trial")
    runner = trial.candidate.target.load(trial.folder, threads=1)
    alone = np.concatenate([runner.predict(x[i : i + 1].numpy())[0] for i in range(4)])
    np.testing.assert_array_equal(answers(trial, runner, 1)(x), alone)
    np.testing.assert_array_equal(answers(trial, runner, 4)(x), runner.predict(x.numpy())[0])
    assert not np.allclose(alone[0], runner.predict(x.numpy())[0][0], rtol=1e-3)


def dynamic_recipe(file: str) -> Recipe:
    decisions = Decisions(techniques=dict.fromkeys("abc", technique()), feeds="dynamic")
    return Recipe((file, "int8"), decisions, seed=0, items=480, threads=1)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}
