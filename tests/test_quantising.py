"""`tersor.quantize`: few bits, repaired, in an archive that torch loads without Tersor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stripes
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError
from tersor.fitting import Decisions, fit
from tersor.graph.model import capture
from tersor.profile import measure
from tersor.recovery.network import Network
from tersor.rewrites.store_quantised import store_quantised
from tersor.site import matrices
from tersor.techniques.gptq import GPTQ

STEM, BODY = "stem_0_weight_unpack", "body_0_weight_unpack"


def quantized(**wishes: Any) -> tersor.Quantized:
    held = [stripes.images(600, 7)]
    return tersor.quantize(stripes.trained(), stripes.batches(), eval_data=held, threads=1, **wishes)


def apart(found: tersor.Quantized) -> float:
    """How far the decisions are from the original's: the mean squared difference of log-probabilities."""
    x = stripes.images(600, 7)[0]
    with torch.no_grad():
        ours, theirs = (module(x).log_softmax(1) for module in (found.module, stripes.trained()))
    return float((ours - theirs).square().mean())


def rows(found: tersor.Quantized, name: str) -> Tensor:
    """The values of a weight, output by output, as the archive's own graph gives them to its layer."""
    seen: dict[str, Tensor] = {}

    def look(node: Any, value: Any) -> Any:
        if node.op == "call_module" and str(node.target).endswith("_unpack"):
            seen[str(node.target)] = value
        return value

    found.model.interpret(found.model.example, look)
    return seen[name].flatten(1)


def test_the_archive_is_what_was_judged_and_holds_packed_codes(tmp_path: Path):
    out = tmp_path / "small.pt2"
    found = quantized(weights=4, activations=4, out=out)
    again = torch.export.load(out).module(check_guards=False)  # without Tersor
    x = stripes.images(50, 3)[0]
    assert torch.equal(again(x), found.module(x))
    body = 16 * 16 * 9
    assert found.bytes[1] < found.bytes[0] - 4 * body + body // 2 + 3000
    codes = [t for t in again.state_dict().values() if t.dtype == torch.uint8]
    assert body // 2 in [t.numel() for t in codes]
    assert set(found.weights.values()) == {8, 4}
    assert json.loads(json.dumps(found.to_json()))["activations"] == 4


@pytest.mark.parametrize(("bits", "values"), [("binary", 2), ("ternary", 3), ("2", 4), ("3", 7)])
def test_each_output_has_so_many_values(bits: str, values: int):
    found = quantized(weights=bits)
    assert max(len(row.unique()) for row in rows(found, BODY)) <= values
    assert max(len(row.unique()) for row in rows(found, STEM)) > 4  # the first matrix has 8 bits
    assert found.after > 0.6


@pytest.mark.parametrize(
    ("word", "values", "bits"),
    [("nf4", 16, 4), ("log3", 7, 3), ("mxfp4", 15 * 5, 4), ("codebook5", 5, 3), ("bf16", 16 * 144, 16)],
)
def test_other_formats_have_their_values_and_the_archive_too(word: str, values: int, bits: int, tmp_path: Path):
    out = tmp_path / "small.pt2"
    found = quantized(weights=word, edges=word, out=out)
    assert set(found.weights.values()) == {bits}
    body = rows(found, BODY)
    runs = [row for row in (body.split(64, 1) if word == "nf4" else [body]) for row in row]
    assert max(len(row.unique()) for row in runs) <= values
    if word == "bf16":
        assert torch.equal(body, body.bfloat16().float())
    x = stripes.images(50, 3)[0]
    again = torch.export.load(out).module(check_guards=False)
    assert torch.equal(again(x), found.module(x))
    assert found.after > 0.9
    assert found.bytes[1] < found.bytes[0] * (bits / 32 + 0.12)


def test_edges_are_wider_only_where_the_others_are_narrow():
    assert set(quantized(weights="fp8").weights.values()) == {8}
    assert set(quantized(weights="nf4").weights.values()) == {8, 4}
    assert set(quantized(weights="bf16").weights.values()) == {16}


def test_runs_of_columns_have_scales_of_their_own():
    coarse, fine = quantized(weights=2, edges=2), quantized(weights=2, edges=2, groups=12)
    assert max(len(row.unique()) for row in rows(coarse, BODY)) <= 4
    assert max(len(row.unique()) for row in rows(fine, BODY)) > 4
    assert fine.bytes[1] > coarse.bytes[1]


def test_error_feedback_loses_less_than_rounding():
    assert apart(quantized(weights="ternary")) < apart(quantized(weights="ternary", method="rounding"))


def test_training_gives_back_what_two_bits_lost():
    wish = {"weights": 2, "edges": 2, "activations": 2, "method": "rounding"}
    plain = quantized(**wish)
    trained = quantized(**wish, recover=tersor.Recovery.of("12epochs", rate=0.002, average=0.98))
    assert apart(trained) < apart(plain)
    assert trained.trained is not None
    assert trained.trained.steps > 30
    assert max(len(row.unique()) for row in rows(trained, BODY)) <= 4


@pytest.mark.parametrize("bits", [3, 8])
def test_the_graph_computes_what_training_sees(bits: int):
    x, _ = stripes.images(256, 5)
    model = capture(stripes.trained(), (x[:2],))
    batches = [(part,) for part in x.split(128)]
    techniques = {m.name: GPTQ(4) for m in matrices(model)}
    decisions = Decisions(techniques=techniques, feeds="static", bits=bits)
    compressed = fit(model, batches, measure(model, batches), decisions)
    seen = Network(compressed)((x,), training=False).outputs["output"].detach()
    torch.testing.assert_close(store_quantised(compressed).run(x)[0], seen, rtol=1e-5, atol=1e-5)


class Tied(nn.Module):
    """An embedding whose weight gives the scores, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 20, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.inner(self.embedding(tokens))))


def test_a_weight_that_is_read_twice_is_stored_once(tmp_path: Path):
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (64, 6))
    found = tersor.quantize(
        Tied().eval(), [(tokens,)], weights=4, edges=4, metric="cosine", threads=1, out=tmp_path / "tied.pt2"
    )
    again = torch.export.load(tmp_path / "tied.pt2").module(check_guards=False)
    assert torch.equal(again(tokens), found.module(tokens))
    held = found.module.state_dict()
    assert sum(t.numel() for t in held.values() if t.dtype == torch.uint8) == (20 * 16 + 16 * 16) // 2
    assert not [n for n, t in held.items() if t.is_floating_point() and t.numel() >= 16 * 16]


class Recommender(nn.Module):
    """Two tables that are looked up, and a small network on top."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(400, 16), nn.Embedding(300, 16)
        self.top = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.cat([self.users(user), self.items(item)], 1))


def test_tables_that_are_looked_up_are_quantised_where_asked(tmp_path: Path):
    torch.manual_seed(0)
    user, item = torch.randint(0, 400, (512,)), torch.randint(0, 300, (512,))
    data, out = [((user, item), torch.zeros(512, dtype=torch.long))], tmp_path / "small.pt2"
    wish: dict[str, Any] = {"weights": 8, "metric": "cosine", "threads": 1}
    plain = tersor.quantize(Recommender().eval(), data, **wish)
    found = tersor.quantize(Recommender().eval(), data, embeddings=4, exclude=["items"], out=out, **wish)
    assert found.weights["users"] == 4
    assert "items" not in found.weights
    stored = 400 * (16 // 2 + 4) + 4  # half a byte a value, a scale a row, one zero point
    assert plain.bytes[1] - found.bytes[1] == 400 * 16 * 4 - stored
    again = torch.export.load(out).module(check_guards=False)
    assert torch.equal(again(user, item), found.module(user, item))
    assert found.after > 0.97


def test_compress_and_inspect_take_the_archive(tmp_path: Path):
    out = tmp_path / "small.pt2"
    quantized(weights=4, out=out)
    report = tersor.compress(str(out), stripes.batches(), max_drop="5%", target="eager", dry_run=True, threads=1)
    assert report.after.score[""] > 0.9
    layers = {layer.name: layer.parameters for layer in tersor.inspect(str(out)).layers}
    assert layers == {"stem.0": 16 * 9 + 16, "body.0": 16 * 16 * 9 + 16, "head": 16 * 4 + 4}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"weights": 9}, "There is no weight format '9'; write 1 to 8, ternary, binary, codebook16 or nf4, fp4"),
        ({"weights": "bf16", "groups": 32}, "The weight format bf16 has no group size; leave out groups"),
        ({"embeddings": 9}, "There is no weight format '9'; write 1 to 8"),
        ({"weights": "codebook1"}, "table of 1 values was asked for; 2 to 256"),
        ({"activations": 1}, "activations is '1'; write 2 to 8"),
        ({"method": "awq"}, "no method 'awq'; choose one of gptq, rounding"),
        ({"ranges": "widest"}, "no ranges 'widest'; choose one of best, minmax"),
        ({"groups": -1}, "groups is -1; write how many columns share a scale"),
        ({"exclude": ["stem.0", "body.0", "head"]}, "no layer that can be quantized"),
    ],
)
def test_what_cannot_be_meant_is_refused(wish: dict, said: str):
    with pytest.raises(InputError, match=said):
        quantized(**wish)


@pytest.mark.slow
@pytest.mark.realdata
def test_resnet20_keeps_what_it_knows_at_four_bits(loaders: Any) -> None:
    images, labels = loaders.cifar10("train")
    x, y = loaders.cifar_norm(images[:512]), torch.from_numpy(labels[:512])
    held = [(loaders.cifar_norm(images[40000:40500]), torch.from_numpy(labels[40000:40500]))]
    data = list(zip(x.split(128), y.split(128), strict=True))
    found = tersor.quantize(loaders.resnet_cifar(20), data, weights=4, activations=8, eval_data=held, threads=2)
    assert found.drop.amount < 0.015
    assert found.bytes[1] < found.bytes[0] / 6
