"""Polishing: the block's output comes nearer, never further away, and the folder is as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lmfolders import folder, ids, rebuilt

import tersor
from benchmarks.language import written
from benchmarks.language_quantization import llama_folder
from tersor.errors import InputError
from tersor.language import kv_cache, walk
from tersor.language.decoder import Decoder
from tersor.language.folder import open_folder
from tersor.language.pack import Chosen, Scheme
from tersor.language.polishing import Goal, polished


def _chosen(bits: int, run: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Chosen], Any, list[Goal]]:
    """Two layers, one after the other, rounded to nearest; what computes with them; what they should give."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 16, generator=draw), torch.randn(8, 24, generator=draw)]
    scheme = Scheme(bits, run)
    chosen = {}
    for name, w in zip("ab", weights, strict=True):
        scale = (w.abs().reshape(len(w), -1, run or w.shape[1]).amax(2) / -scheme.ends[0]).to(dtype)
        codes = (w / scheme.wide(scale.float(), w)).round().clamp(*scheme.ends).to(torch.int8)
        chosen[name] = Chosen(codes, scale, scheme, None, w)

    def run_it(values: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ values["a.weight"].T / 4) @ values["b.weight"].T

    x = torch.randn(12, 40, 16, generator=draw)
    wanted = run_it({f"{n}.weight": w for n, w in zip("ab", weights, strict=True)}, x)
    return chosen, run_it, [Goal(x[i : i + 4], wanted[i : i + 4]) for i in (0, 4, 8)]


def _error(run_it: Any, chosen: dict[str, Chosen], goal: Goal) -> float:
    gave = run_it({f"{name}.weight": found.value for name, found in chosen.items()}, goal.hidden)
    return float((gave - goal.wanted).square().mean())


@pytest.mark.parametrize(
    ("bits", "run", "dtype"), [(2, 8, torch.float32), (3, 0, torch.bfloat16), (4, 8, torch.float16)]
)
def test_the_error_of_what_leaves_the_block_falls(bits: int, run: int, dtype: torch.dtype) -> None:
    chosen, run_it, goals = _chosen(bits, run, dtype)
    found = polished(run_it, chosen, goals[:1], goals[1:2], 100)
    assert _error(run_it, found, goals[2]) < 0.8 * _error(run_it, chosen, goals[2])  # which nobody has seen
    for name, each in found.items():
        assert each.codes.dtype == torch.int8
        assert each.scale.dtype == dtype
        low, high = each.scheme.ends
        assert low <= int(each.codes.min())
        assert int(each.codes.max()) <= high
        assert each.scale.shape == chosen[name].scale.shape
    again = polished(run_it, chosen, goals[:1], goals[1:2], 100)
    assert all(
        torch.equal(found[n].codes, again[n].codes) and torch.equal(found[n].scale, again[n].scale) for n in found
    )


def test_nothing_changes_where_nothing_gains() -> None:
    chosen, run_it, goals = _chosen(2)
    exact = [Goal(g.hidden, run_it({f"{n}.weight": c.value for n, c in chosen.items()}, g.hidden)) for g in goals]
    found = polished(run_it, chosen, exact[:1], exact[1:2], 8)
    assert all(found[name] is chosen[name] for name in chosen)


def moved(run_it: Any, chosen: dict[str, Chosen], *_: Any) -> dict[str, Chosen]:
    """Every second code one lower, every scale a bit smaller."""
    found = {}
    for name, each in chosen.items():
        codes = each.codes.clone()
        codes[:, ::2] = (codes[:, ::2] - 1).clamp_min(each.scheme.ends[0])
        found[name] = replace(each, codes=codes, scale=each.scale * 0.75)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])  # the latter has biases
def test_what_was_polished_is_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source, text, judged, wish = folder(tmp_path / "in", name), [ids(64)], [ids(8)], {"weights": 2, "threads": 1}
    plain = tersor.quantize(source, text, **wish, eval_data=judged)
    monkeypatch.setattr(walk, "polished", moved)
    found = tersor.quantize(source, text, **wish, polish=1, eval_data=judged, out=tmp_path / "out")
    assert found.losses[0] == plain.losses[0]
    assert found.losses[1] != plain.losses[1]
    assert found.bytes == plain.bytes
    scores = rebuilt(tmp_path / "out", name)(judged[0]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(scores.mT, judged[0][:, 1:])
    assert float(loss) == pytest.approx(found.after, abs=1e-4)


def test_gradients_pass_grids_of_what_is_read_and_cached(tmp_path: Path) -> None:
    decoder = Decoder(open_folder(folder(tmp_path / "in", "llama")))
    block, hidden = decoder.block(0), decoder.enter(ids(8))
    walk._read_on_grids(block.self_attn.o_proj, 4)
    for name in kv_cache.caches(block):
        grids = kv_cache.Grids("fp8")
        kv_cache.put(block.get_submodule(name), grids)
        decoder.run(block, 0, hidden)
        grids.settle(torch.float32)
    for leaf in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(block.self_attn, leaf).weight.detach().clone().requires_grad_()
        decoder.through(block, 0, {f"self_attn.{leaf}.weight": weight}, hidden).square().sum().backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().max()) > 0


@pytest.mark.slow
@pytest.mark.realdata
def test_a_language_model_loses_less(tmp_path: Path, loaders: ModuleType) -> None:
    module, tokens = loaders.stories260k()
    source = llama_folder(module, tmp_path / "in")
    first = tokens.encode("Once")[0]
    text, judged = (written(module, first, seed) for seed in (0, 1))
    wish = {"weights": 2, "groups": 32, "threads": 1, "eval_data": [judged]}
    plain, found = (tersor.quantize(source, [text], **wish, polish=steps) for steps in (0, 200))
    assert found.after - found.before < 0.8 * (plain.after - plain.before)  # 0.65 was seen


def test_who_has_no_blocks_is_told(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 3)
    with pytest.raises(InputError, match="polish is 60; it applies only to folders of language models"):
        tersor.quantize(module, [torch.randn(8, 4)], metric="agreement", polish=60)
    with pytest.raises(InputError, match="polish is -1; write a number of steps"):
        tersor.quantize(folder(tmp_path / "in", "llama"), [ids(8)], polish=-1)
