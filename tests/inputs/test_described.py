"""`inspect --data` says how data was read, whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.cli import app
from tersor.errors import DataError
from tersor.inputs.data import bring
from tersor.inputs.described import Column, Described, described
from tersor.inputs.models import bring as bring_model
from tersor.inputs.models import captured

X = torch.linspace(-1, 2, 60).reshape(20, 3)
Y = torch.arange(20) % 4


def read(given: object) -> Described:
    model = captured(bring_model((nn.Linear(3, 4), X[:2])))
    return described(bring(given), model)


def test_inputs_labels_items_types_and_ranges() -> None:
    found = read([(X[:8], Y[:8]), (X[8:], Y[8:])])
    assert (found.how, found.items, found.batches, found.sizes) == ("batches, inputs and labels", 20, 2, (8, 12))
    assert found.inputs == (Column("input", "float32", (3,), -1.0, 2.0),)
    assert found.labels == (Column("", "int64", (), 0.0, 3.0, 0, 4, ("0", "1", "2", "3")),)
    assert [item.number for item in found.examples] == [0, 10, 19]
    assert found.examples[0].inputs == {"input": "-1 -0.9492 -0.8983"}
    assert found.examples[1].labels == {"": "2"}
    assert found.problem is None


def test_all_items_at_once_and_labels_of_other_kinds() -> None:
    assert read((X.numpy(), Y.numpy())).how == "all items at once, inputs and labels"
    assert read(X).how == "all items at once, inputs without labels"
    words = read([(X, [f"class {i % 3}" for i in range(20)])])
    assert (words.labels[0].distinct, words.labels[0].values) == (3, ("class 0", "class 1", "class 2"))
    several = read([(X, {"kind": Y, "size": X[:, 0]})])
    assert [(c.name, c.type, c.distinct) for c in several.labels] == [("kind", "int64", 4), ("size", "float32", None)]
    many = read([(X, torch.arange(20) * 3)])
    assert (many.labels[0].distinct, len(many.labels[0].values)) == (20, 20)
    with pytest.raises(DataError, match="the model takes 1: input"):
        read([(X, X, Y, Y)])


def test_what_is_not_finite_is_counted_and_the_refusal_told() -> None:
    bad = X.clone()
    bad[3, 1], bad[4] = float("nan"), float("inf")
    found = read([(bad, Y)])
    column = found.inputs[0]
    assert (column.strange, column.low, column.high) == (4, -1.0, 2.0)
    assert found.problem is not None
    assert "holds 4 NaN or Inf" in found.problem
    nothing = read([(X * float("nan"), Y)])
    assert (nothing.inputs[0].low, nothing.inputs[0].strange) == (None, 60)


def test_tokens_and_items_of_other_lengths() -> None:
    class Mean(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return (ids * mask).float().mean(1, keepdim=True)

    ids, mask = torch.arange(12).reshape(4, 3), torch.ones(4, 3, dtype=torch.bool)
    model = captured(bring_model((Mean(), (ids[:2], mask[:2]))))
    found = described(bring([(ids, mask)]), model)
    assert [(c.name, c.type, c.distinct) for c in found.inputs] == [("ids", "int64", 12), ("mask", "bool", 1)]
    assert found.labels == ()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "brought.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n    return nn.Linear(3, 4).eval(), torch.randn(2, 3)\n"
        "def data():\n    x = torch.linspace(-1, 2, 60).reshape(20, 3)\n    x[0, 0] = float('nan')\n"
        "    return [(x, torch.arange(20) % 4)]\n"
    )
    return tmp_path / "brought.py"


def test_the_command_shows_it_and_gives_it_as_json(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app.run(["inspect", f"{files}:model", "--data", f"{files}:data"])
    out = " ".join(capfd.readouterr().out.split())
    assert not ended.value.code
    assert "read as batches, inputs and labels; 20 items in 1 batch of 20" in out
    assert "1 NaN or Inf" in out
    assert "4 distinct: 0, 1, 2, 3" in out
    assert "Other commands will refuse this data: Input 'input'" in out
    with pytest.raises(SystemExit):
        app.run(["inspect", f"{files}:model", "--data", f"{files}:data", "--json"])
    found = json.loads(capfd.readouterr().out)["data"]
    assert found["inputs"][0]["strange"] == 1
    assert found["labels"][0]["values"] == ["0", "1", "2", "3"]
    assert np.isfinite(found["inputs"][0]["low"])
    assert len(found["examples"]) == 3
