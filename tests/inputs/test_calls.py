"""Models that are called in unusual ways, and outputs of unusual structures: the graph takes tensors and gives tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import ModelError
from tersor.inputs.models import bring, captured, captured_whole
from tersor.store.programs import write_program


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclass
class Held:
    a: Tensor
    b: Tensor
    note: Tensor | None = None


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


class Star(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()

    def forward(self, *parts: Tensor) -> Any:
        return self.body(sum(parts))


class Names(Star):
    def forward(self, x: Tensor, **parts: Tensor) -> Any:  # type: ignore[override]
        return self.body(x + parts["b"])


class KeywordOnly(Star):
    def forward(self, *, x: Tensor, scale: Tensor | None = None) -> Any:  # type: ignore[override]
        return self.body(x if scale is None else x * scale)


class Optional(Star):
    def forward(self, x: Tensor, mask: Tensor | None, shift: Tensor) -> Any:  # type: ignore[override]
        return self.body(x + shift if mask is None else x * mask), None, x


class One(Star):
    """Of one argument that holds two tensors."""

    def forward(self, pair: Any) -> Any:  # type: ignore[override]
        if isinstance(pair, dict):
            return {"sum": self.body(pair["a"] + pair["b"]), "none": None, "a": pair["a"]}
        if isinstance(pair, list):
            return [self.body(pair[0] + pair[1])]
        return type(pair)(self.body(pair.a + pair.b), pair.a)


def x() -> Tensor:
    return torch.randn(2, 12)


@pytest.mark.parametrize(
    ("module", "example", "inputs", "outputs"),
    [
        (Star(), (x(), x()), ("parts_0", "parts_1"), ("output",)),
        (Names(), {"b": x(), "x": x()}, ("b", "x"), ("output",)),
        (KeywordOnly(), {"x": x(), "scale": None}, ("x",), ("output",)),
        (Optional(), (x(), None, x()), ("x", "shift"), ("output_0", "output_2")),
        (One(), Pair(x(), x()), ("pair_a", "pair_b"), ("output_0", "output_1")),
        (One(), Held(x(), x()), ("pair_a", "pair_b"), ("output_0", "output_1")),
        (One(), [x(), x()], ("pair_0", "pair_1"), ("output_0",)),
        (One(), {"a": x(), "b": x()}, ("pair_a", "pair_b"), ("sum", "a")),
        (torch.optim.swa_utils.AveragedModel(body()), x(), ("args_0",), ("output",)),
        (nn.DataParallel(body()), x(), ("input",), ("output",)),
        (torch.compile(body(), backend="eager"), x(), ("input",), ("output",)),
    ],
    ids=[
        "star",
        "names",
        "keyword-only",
        "none",
        "named-tuple",
        "dataclass",
        "list",
        "dict",
        "averaged",
        "parallel",
        "compiled",
    ],
)
def test_a_call_is_taken_as_it_is_and_archived(
    module: nn.Module, example: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    model, original = captured_whole(bring((module.eval(), example)))
    assert (model.inputs, model.outputs) == (inputs, outputs)
    more = [torch.randn(5, 12) for _ in inputs]
    for found, wanted in zip(model.run(*more), original(*more), strict=True):
        torch.testing.assert_close(found, wanted)
    write_program(tmp_path / "p.pt2", model)
    again = captured(bring(str(tmp_path / "p.pt2")))
    assert (again.inputs, len(again.outputs)) == (inputs, len(outputs))
    torch.testing.assert_close(again.run(*more), model.run(*more))
    layers = tersor.inspect((module, example)).layers
    assert [layer.macs for layer in layers] == [96, 32]


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(ModelError, match="holds int, str; only tensors can be inputs"):
        captured(bring((Star(), (x(), 3, "mean"))))
    with pytest.raises(ModelError, match="holds nothing; only tensors can be inputs"):
        captured(bring((Optional(), (None, None, None))))


def test_outputs_of_a_class_of_transformers_become_a_dict(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 30, (2, 6))
    model, original = captured_whole(bring((bert, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})))
    assert model.outputs == ("logits",)
    more = (torch.randint(0, 30, (5, 6)), torch.ones(5, 6, dtype=torch.long))
    torch.testing.assert_close(model.run(*more), original(*more), atol=1e-5, rtol=1e-4)
    write_program(tmp_path / "p.pt2", model)
    assert captured(bring(str(tmp_path / "p.pt2"))).outputs == ("logits",)


def test_outputs_that_would_be_called_alike_are_all_there() -> None:
    class Nested(Star):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return {"a": {"b": self.body(x)}, "a_b": self.body(-x)}

    model = captured(bring((Nested(), x())))
    assert model.outputs == ("a_b", "a_b_2")
    assert [tuple(t.shape) for t in model.run(torch.randn(5, 12))] == [(5, 4), (5, 4)]


def test_a_cache_among_the_outputs_is_refused_in_words() -> None:
    class DynamicCache:
        """As transformers gives it back where `use_cache` is on."""

    class Cached(Star):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return self.body(x), DynamicCache()

    with pytest.raises(ModelError, match="build it with use_cache=False"):
        captured(bring((Cached(), x())))
