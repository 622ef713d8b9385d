"""The commands on a delivered artifact: compress, report, verify, benchmark, and the recipe again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tersor.cli import app

NET = """
import torch
from torch import nn

def images(count, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=g)
    return labels[:, None, None, None] - 0.5 + 0.4 * torch.randn(count, 1, 6, 6, generator=g), labels

def make():
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*body, nn.Linear(8, 2))
    x, y = images(512, 1)
    optimiser = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval(), x[:1]

def data():
    for seed in range(8):
        yield images(100, seed + 10)

def other():
    yield images(200, 99)
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "net_with_data.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="module", autouse=True)
def _loud() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "hush", lambda: None)
        yield


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def made(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "small"
    words = ["--out", out, "--target", "onnxruntime", "--threads", "1", "--max-drop", "2%", "--time-limit", "2m"]
    with pytest.raises(SystemExit) as ended:
        app.run(["compress", f"{net}:make", "--data", f"{net}:data", *map(str, words)])
    assert not ended.value.code
    return out


def test_compress_shows_the_table_and_where_the_report_is(made: Path, call: Call) -> None:
    code, out, _ = call("report", made)
    assert code == 0
    for expected in (
        "accuracy",
        "time per batch of 1",
        "file size",
        "heavy operators ran in",
        str(made / "report.html"),
    ):
        assert expected in out


def test_report_as_json(made: Path, call: Call) -> None:
    code, out, _ = call("report", made, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["path"] == str(made / "report.html")
    assert found["report"]["metric"] == "accuracy"


@pytest.mark.slow
def test_dry_run_writes_nothing(made: Path, net: Path, tmp_path: Path, call: Call) -> None:
    words = ("--dry-run", "--out", tmp_path / "none", "--recipe", made / "plan.yaml", "--threads", 1, "--json")
    code, out, err = call("compress", f"{net}:make", "--data", f"{net}:data", "--max-drop", "2%", *words)
    assert code == 0, err
    assert not (tmp_path / "none").exists()
    found = json.loads(out)
    assert found["out"] is None
    assert found["report"]["after"]["score"]
    assert "reading the model" in err


def test_the_recipe_gives_the_same_files(made: Path, net: Path, tmp_path: Path, call: Call) -> None:
    words = ("--out", tmp_path / "again", "--recipe", made / "plan.yaml", "--threads", 1, "--max-drop", "2%")
    code, _, err = call("compress", f"{net}:make", "--data", f"{net}:data", *words)
    assert code == 0, err
    names = sorted(p.name for p in (made / "model").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again" / "model").iterdir())
    for name in names:
        assert (made / "model" / name).read_bytes() == (tmp_path / "again" / "model" / name).read_bytes()


def test_verify_says_what_it_checked(made: Path, net: Path, call: Call) -> None:
    code, out, _ = call("verify", made)
    assert code == 0
    assert "matches its manifest" in out
    code, out, _ = call("verify", made, "--data", f"{net}:other")
    assert code == 0
    assert "accuracy on 200 items" in out
    assert "recorded on its own evaluation data" in out
    code, out, _ = call("verify", made, "--data", f"{net}:other", "--json")
    assert type(json.loads(out)["recorded"]) is type(json.loads(out)["score"]) is float
    code, out, _ = call("verify", made, "--data", f"{net}:other", "--metric", "cross_entropy", "--json")
    found = json.loads(out)
    assert (found["verified"], found["metric"], found["recorded"]) == (True, "cross_entropy", None)


def test_verify_compares_with_the_original(made: Path, net: Path, call: Call) -> None:
    words = ("--data", f"{net}:other", "--model", f"{net}:make", "--json")
    for metric, least in (("agreement", 0.98), ("cosine", 0.99)):
        code, out, err = call("verify", made, "--metric", metric, *words)
        assert code == 0, err
        assert json.loads(out)["score"] >= least


def test_sensitivity_shows_the_worst_place_first(net: Path, tmp_path: Path, call: Call) -> None:
    page = tmp_path / "sensitivity.html"
    words = ("--metric", "cross_entropy", "--granularity", "bits", "--threads", 1, "--items", 100, "--out", page)
    code, out, err = call("sensitivity", f"{net}:make", "--data", f"{net}:data", *words)
    assert code == 0, err
    assert "100 held-out items" in out
    assert all(head in out for head in ("Bits per weight", "8 bits", "2 bits"))
    assert "<polyline" in page.read_text()


def test_verify_refuses_what_it_cannot_check(made: Path, net: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call("verify", made, "--data", f"{net}:other", "--metric", "agreement")
    assert (code, "compares with the original model" in err, "--model" in err) == (2, True, True)
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    (broken / "plan.yaml").write_text("changed")
    code, _, err = call("verify", broken)
    assert (code, "plan.yaml has 7 bytes" in err) == (5, True)
    assert err.startswith("error: ")


def test_benchmark_times_against_others(made: Path, tmp_path: Path, call: Call) -> None:
    other = tmp_path / "other"
    shutil.copytree(made, other)
    code, out, _ = call("benchmark", made, "--vs", other, "--rounds", 5, "--batch", 4)
    assert code == 0
    for expected in ("batch of 4, 1 thread, 5 rounds", str(other), "the first timed against itself"):
        assert expected in out
    code, out, _ = call("benchmark", made, "--vs", made, "--rounds", 5, "--json")
    found = json.loads(out)
    assert [Path(a["folder"]) for a in found["artifacts"]] == [made, made]
    assert found["artifacts"][0]["seconds"]["value"] > 0


def test_prune_writes_an_archive_and_says_what_went(net: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "small.pt2"
    words = ("--metric", "agreement", "--weights", "50%", "--threads", "1", "--out", str(out))
    code, shown, err = call("prune", f"{net}:make", "--data", f"{net}:data", *words)
    assert code == 0, err
    assert "nonzero" in shown
    assert "agreement 1 ->" in shown
    assert torch.export.load(out).module(check_guards=False)
    code, shown, _ = call("prune", f"{net}:make", "--data", f"{net}:data", *words, "--json")
    assert code == 0
    record = json.loads(shown)
    assert record["out"] == str(out)
    assert record["size"]["nonzero"] < 0.6 * record["size"]["weights"]
    code, shown, err = call("prune", f"{net}:make", "--data", f"{net}:data", "--macs", "2")
    assert (code, shown) == (2, "")
    assert "did you mean 2x?" in err


def test_quantize_writes_an_archive_and_says_how_small(net: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "small.pt2"
    words = ("--metric", "agreement", "--weights", "4", "--activations", "6", "--threads", "1", "--out", str(out))
    code, shown, err = call("quantize", f"{net}:make", "--data", f"{net}:data", *words)
    assert code == 0, err
    assert "agreement 1 ->" in shown
    assert "6 bits" in shown
    assert torch.export.load(out).module(check_guards=False)
    code, shown, _ = call("quantize", f"{net}:make", "--data", f"{net}:data", *words, "--json")
    record = json.loads(shown)
    assert (code, record["out"], record["activations"]) == (0, str(out), 6)
    assert record["bytes"][1] < record["bytes"][0]
    code, shown, err = call("quantize", f"{net}:make", "--data", f"{net}:data", "--weights", "9")
    assert (code, shown) == (2, "")
    assert "write 1 to 8, ternary, binary, codebook16" in err
