from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lmfolders import configurations, dense, folder, ids, model, one_thread, rebuilt, transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tersor
from tersor.errors import InputError, ModelError, StorageError, TersorError
from tersor.language import text
from tersor.language.pack import Scheme
from tersor.language.walk import Wanted, choose
from tersor.maths.grid import Integers, PerChannel, PerGroup, absmax
from tersor.maths.regression import best_ridge, moments, optimum
from tersor.techniques.gptq import GPTQ

__all__ = ["one_thread"]  # a fixture


@torch.no_grad()
def losses(found: Any, some: Tensor) -> Tensor:
    return F.cross_entropy(found(some).logits[:, :-1].float().mT, some[:, 1:], reduction="none").mean(1)


def judged() -> Tensor:
    return torch.cat(text.split([ids()], 0)[1])


@pytest.mark.parametrize("name", configurations())
@pytest.mark.parametrize(("bits", "groups"), [(4, 16), (3, 0)])
def test_the_written_folder_computes_what_was_judged(tmp_path: Path, name: str, bits: int, groups: int):
    found = tersor.quantize(folder(tmp_path / "in", name), [ids()], weights=bits, groups=groups, out=tmp_path / "out")
    assert set(found.weights.values()) == {bits}
    assert found.bytes[1] < found.bytes[0]
    small = rebuilt(tmp_path / "out", name)
    assert np.allclose(losses(small, judged()), found.losses[1], atol=1e-5)
    assert np.allclose(losses(model(name), judged()), found.losses[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "gpt_neox", "opt", "bloom"])
@pytest.mark.parametrize(("bits", "groups"), [(2, 8), (3, 0), (4, 16), (8, 0)])
def test_compressed_tensors_reads_it(tmp_path: Path, name: str, bits: int, groups: int):
    pytest.importorskip("compressed_tensors", minversion="0.18" if bits == 3 else None)
    found = tersor.quantize(folder(tmp_path / "in", name), [ids()], weights=bits, groups=groups, out=tmp_path / "out")
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.allclose(losses(small, judged()), found.losses[1], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["llama", "gpt_neox"]
)  # (OPT flattens positions, which the library then takes for one)
@pytest.mark.parametrize(("bits", "reads", "groups"), [(8, 8, 0), (4, 8, 16), (4, 4, 0)])
def test_compressed_tensors_rounds_activations_alike(tmp_path: Path, name: str, bits: int, reads: int, groups: int):
    pytest.importorskip("compressed_tensors")
    wish: dict[str, Any] = {"weights": bits, "activations": reads, "groups": groups, "out": tmp_path / "out"}
    found = tersor.quantize(folder(tmp_path / "in", name), [ids()], **wish)
    assert found.activations == reads
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.allclose(losses(small, judged()), found.losses[1], atol=1e-4)
    assert not np.allclose(losses(rebuilt(tmp_path / "out", name), judged()), found.losses[1], atol=1e-4)


class Rounding(transformers.DynamicCache):
    """Keys and values go through the stored scales of their layer."""

    def __init__(self, config: Any, scales: list[tuple[Tensor, Tensor]], kind: str):
        super().__init__(config=config)
        self.scales, self.kind = scales, kind

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any, **more: Any) -> Any:
        rounded = [self.rounded(t, scale) for t, scale in zip((keys, values), self.scales[layer], strict=True)]
        return super().update(*rounded, layer, *rest, **more)

    def rounded(self, t: Tensor, scale: Tensor) -> Tensor:
        if self.kind == "fp8":
            return (t / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        return (t / scale).round().clamp(-128, 127) * scale


@pytest.mark.parametrize(("name", "place"), [("llama", "model"), ("opt", "model.decoder"), ("gemma3", "model")])
@pytest.mark.parametrize("kind", ["8", "fp8"])
def test_keys_and_values_go_through_the_scales_that_are_stored(tmp_path: Path, name: str, place: str, kind: str):
    found = tersor.quantize(folder(tmp_path / "in", name), [ids()], kv_cache=kind, out=tmp_path / "out")
    assert found.kv_cache == kind
    held = load_file(tmp_path / "out" / "model.safetensors")
    count = sum(key.endswith("k_scale") for key in held)
    assert count == (3 if name == "gemma3" else 2)
    scales = [tuple(held[f"{place}.layers.{i}.self_attn.{w}_scale"] for w in "kv") for i in range(count)]
    small, some = rebuilt(tmp_path / "out", name), judged()
    with torch.no_grad():
        scores = small(some, past_key_values=Rounding(small.config, scales, kind), use_cache=True).logits  # type: ignore[arg-type]
    after = F.cross_entropy(scores[:, :-1].mT, some[:, 1:], reduction="none").mean(1)
    assert np.allclose(after, found.losses[1], atol=1e-4)
    assert not np.allclose(losses(small, some), found.losses[1], atol=1e-4)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert told["type"] == ("float" if kind == "fp8" else "int")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_stored_as_they_compute(tmp_path: Path, dtype: torch.dtype):
    pytest.importorskip("compressed_tensors")
    found = tersor.quantize(folder(tmp_path / "in", "qwen2", dtype), [ids()], weights=8, out=tmp_path / "out")
    held, was = dense(tmp_path / "out"), load_file(tmp_path / "in" / "model.safetensors")
    assert {t.dtype for t in held.values()} == {dtype}
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert np.allclose(losses(small, judged()), found.losses[1], atol=0.05)
    assert np.allclose(losses(rebuilt(tmp_path / "out", "qwen2"), judged()), found.losses[1], atol=1e-5)
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((held[name].float() - was[name].float()).abs().max()) < 0.02


def test_shards_and_one_file_give_the_same(tmp_path: Path):
    folder(tmp_path / "one", "llama")
    folder(tmp_path / "many", "llama", shards="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for name in ("one", "many"):
        tersor.quantize(tmp_path / name, [ids()], groups=8, out=tmp_path / f"{name}-out")
    one, many = (load_file(tmp_path / f"{name}-out" / "model.safetensors") for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert not list((tmp_path / "many-out").glob("*.index.json"))


def test_same_seed_same_files(tmp_path: Path):
    folder(tmp_path / "in", "qwen2")
    for out in ("a", "b"):
        tersor.quantize(tmp_path / "in", "itself", out=tmp_path / out, threads=1)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def watched(found: Any, name: str, some: Tensor) -> tuple[Tensor, Tensor]:
    """(input, output) rows of a module while the whole model runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = found.get_submodule(name).register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        found(some)
    hook.remove()
    return tuple(t.flatten(0, 1) for t in seen[0])  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "stream"), [("self_attn.q_proj", ""), ("mlp.down_proj", "post_attention_layernorm"), ("mlp.up_proj", "")]
)
def test_streamed_is_what_the_whole_network_in_memory_gives(tmp_path: Path, name: str, stream: str):
    """The last block's matrices, fitted again on what whole models in memory say."""
    tersor.quantize(folder(tmp_path / "in", "llama"), [ids(400)], weights=4, out=tmp_path / "out")
    original, now = model("llama"), rebuilt(tmp_path / "out", "llama")
    windows = torch.cat(text.split([ids(400)], 0)[0])
    pieces = text.gathered([windows], min(2048, windows.numel() // 8))
    some, held = torch.cat([p for i, p in enumerate(pieces) if i % 8 != 7]), torch.cat(pieces[7::8])

    def parts(tokens: Tensor) -> Any:
        place = "model.layers.1."
        x, t = watched(now, place + name, tokens)[0], watched(original, place + name, tokens)[1]
        if stream:
            t = t + watched(original, place + stream, tokens)[0] - watched(now, place + stream, tokens)[0]
        return moments(x[None], t[None])

    fit, check = parts(some), parts(held)
    w = F.pad(original.get_submodule(f"model.layers.1.{name}").weight.detach().double(), (0, 1))[None]
    ridge = best_ridge(w, fit, check, torch.ones(w.shape[:2]), False)
    aim = w if ridge is None else optimum(w, fit, ridge, False)
    chosen = choose(aim, False, fit.gram, Wanted(Scheme(4, 0), GPTQ(4), torch.float32))
    stored = now.get_submodule(f"model.layers.1.{name}").weight.detach()
    differs = (chosen.value - stored).abs() > 1e-4 * stored.abs().max()
    assert float(differs.double().mean()) < 0.01  # sums in another order may tip a code over


@pytest.mark.parametrize("groups", [0, 8])
def test_outputs_are_nearer_than_those_of_plain_rounding(tmp_path: Path, groups: int):
    folder(tmp_path / "in", "llama")
    tersor.quantize(tmp_path / "in", [ids(200)], weights=3, groups=groups, out=tmp_path / "out")
    original, ours, plain = model("llama"), rebuilt(tmp_path / "out", "llama"), model("llama")
    for name, module in plain.named_modules():
        if name.startswith("model.layers") and isinstance(module, torch.nn.Linear):
            grain = PerGroup(groups) if groups else PerChannel()
            module.weight.data = absmax(module.weight.data, Integers(3, True, grain)).round(module.weight.data).float()
    some = torch.cat(text.split([ids(200)], 0)[1])
    with torch.no_grad():
        wanted = original(some).logits
        errors = [float((each(some).logits - wanted).square().mean()) for each in (ours, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_excluded_layers_and_everything_else_stay(tmp_path: Path):
    kept = "model.layers.1.mlp.down_proj"
    folder(tmp_path / "in", "llama")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    (tmp_path / "in" / "run.py").write_text("")
    found = tersor.quantize(tmp_path / "in", [ids()], exclude=[kept], out=tmp_path / "out")
    was, held = (load_file(tmp_path / each / "model.safetensors") for each in ("in", "out"))
    same = [name for name in was if name in held]
    assert f"{kept}.weight" in same
    assert "lm_head.weight" in same
    assert all(torch.equal(was[name], held[name]) for name in same)
    left = {each.name: each for each in found.left_alone}
    assert left.keys() == set(same)
    assert all(left[name].nbytes == 4 * was[name].numel() for name in same)
    assert left[f"{kept}.weight"].reason == "excluded by the user"
    assert left["lm_head.weight"].reason.startswith("not in a decoder block")
    assert left["model.layers.0.input_layernorm.weight"].reason == "a bias, or a norm's scale or shift"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == [kept, "lm_head"]
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "generation_config.json").exists()
    assert not (tmp_path / "out" / "run.py").exists()


def test_blocks_without_linear_layers_are_refused_by_what_they_hold(tmp_path: Path):
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, n_positions=128)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "in")
    with pytest.raises(InputError, match=r"hold their weights in Conv1D, LayerNorm; of a folder only linear layers"):
        tersor.quantize(tmp_path / "in", [ids()])


def broken(path: Path, change: Any) -> Path:
    folder(path, "llama")
    held = load_file(path / "model.safetensors")
    change(held)
    save_file(held, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.layers.1.mlp.up_proj.weight", "drop", "lacks the weight 'model.layers.1.mlp.up_proj.weight'"),
        ("model.embed_tokens.weight", "drop", "lacks the weight 'model.embed_tokens.weight'"),
        ("lm_head.weight", "drop", "lacks the weight 'lm_head.weight'"),
        ("model.layers.0.mlp.up_proj.weight", "nan", "'model.layers.0.mlp.up_proj.weight' holds NaN or Inf"),
        ("model.layers.1.input_layernorm.weight", "short", r"has the shape \(31,\); config.json asks for \(32,\)"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, name: str, change: str, said: str):
    def apply(held: dict) -> None:
        value = held.pop(name)
        if change == "nan":
            held[name] = value.index_fill(0, torch.tensor([3]), float("nan"))
        elif change == "short":
            held[name] = value[:-1].clone()

    with pytest.raises(ModelError, match=said):
        tersor.quantize(broken(tmp_path / "in", apply), [ids()], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_model_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is a folder without config\.json"):
        tersor.quantize(tmp_path / "empty", [ids()])
    folder(tmp_path / "in", "llama")
    (tmp_path / "in" / "model.safetensors").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor"):
        tersor.quantize(tmp_path / "in", [ids()])
    (tmp_path / "in" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(model("llama").state_dict(), "model-1.safetensors")})
    )
    with pytest.raises(ModelError, match=r"model-1\.safetensors' is missing"):
        tersor.quantize(tmp_path / "in", [ids()])
    (tmp_path / "in" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "../moved"}})
    )
    with pytest.raises(ModelError, match="holds no weight_map from tensors to files of this folder"):
        tersor.quantize(tmp_path / "in", [ids()])
    (tmp_path / "in" / "model.safetensors.index.json").unlink()
    (tmp_path / "moved").rename(tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ModelError, match=r"The configuration in .* cannot be read"):
        tersor.quantize(tmp_path / "in", [ids()])


def test_a_users_own_files_are_not_replaced(tmp_path: Path):
    """Also where they look like what is written: a config.json that names compressed-tensors is in many folders."""
    source, out = folder(tmp_path / "in", "llama"), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    (out / "thesis.tex").write_text("years")
    with pytest.raises(StorageError, match=r"no tersor\.json says that Tersor wrote it"):
        tersor.quantize(source, [ids()], out=out)
    assert (out / "thesis.tex").read_text() == "years"
    (out / "tersor.json").write_text('{"files": {"config.json": 1, "thesis.tex": 2}}')
    with pytest.raises(StorageError, match="is not replaced"):
        tersor.quantize(source, [ids()], out=out)
    assert (out / "thesis.tex").read_text() == "years"
    ours = tmp_path / "ours"
    tersor.quantize(source, [ids()], out=ours)
    tersor.quantize(source, [ids()], weights=8, out=ours)
    for change in (lambda: (ours / "config.json").write_text("{}"), lambda: (ours / "notes.txt").write_text("mine")):
        change()
        with pytest.raises(StorageError, match="it was changed since Tersor wrote it"):
            tersor.quantize(source, [ids()], out=ours)
    assert (ours / "notes.txt").read_text() == "mine"


def test_an_already_quantised_folder_is_refused_and_replaced_only_as_output(tmp_path: Path):
    folder(tmp_path / "in", "llama")
    for _ in range(2):
        tersor.quantize(tmp_path / "in", [ids()], out=tmp_path / "out")
    with pytest.raises(ModelError, match="is already quantized"):
        tersor.quantize(tmp_path / "out", [ids()])
    before = (tmp_path / "in" / "model.safetensors").read_bytes()
    with pytest.raises(StorageError, match=r"is not replaced: it is not empty, and no tersor\.json says"):
        tersor.quantize(tmp_path / "in", [ids()], out=tmp_path / "in")
    assert (tmp_path / "in" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"activations": 3}, "for the folder of a language model write 4 to 8"),
        ({"kv_cache": 4}, "kv_cache is 4; write 8 or fp8, or none"),
        ({"weights": 5}, "write 2, 3, 4 or 8"),
        ({"weights": "ternary"}, "write 2, 3, 4 or 8"),
        ({"groups": -1}, "groups is -1"),
        ({"method": "awq"}, "no method 'awq'"),
        ({"edges": 4}, "embeddings and the head of a language model stay"),
        ({"ranges": "minmax"}, "quantized per token at run time"),
        ({"recover": "1epochs"}, "which is not trained"),
        ({"metric": "agreement"}, "evaluated by their next-token loss"),
        ({"exclude": ["lm_head"]}, "not a linear layer of a decoder block; similar names: model.layers"),
    ],
)
def test_wishes_that_folders_do_not_have(tmp_path: Path, wish: dict, said: str):
    with pytest.raises(InputError, match=said):
        tersor.quantize(folder(tmp_path / "in", "llama"), [ids()], **wish)


def test_attention_whose_cache_readers_do_not_know(tmp_path: Path):
    with pytest.raises(ModelError, match="leave the KV cache at none"):
        tersor.quantize(folder(tmp_path / "in", "bloom"), [ids()], kv_cache="fp8")


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path):
    with pytest.raises(TersorError, match="token id 64; the model's vocabulary has ids 0 to 63"):
        tersor.quantize(folder(tmp_path / "in", "llama"), [ids(vocabulary=65).clamp_min(64)])


def test_the_command_line(tmp_path: Path):
    folder(tmp_path / "in", "llama")
    np.save(tmp_path / "ids.npy", ids().numpy())
    words = ["quantize", str(tmp_path / "in"), "--data", str(tmp_path / "ids.npy"), "--weights", "4", "--groups", "8"]
    words += ["--out", str(tmp_path / "out")]
    start = [sys.executable, "-c", "from tersor.cli import main; main()", *words, "--threads", "1"]
    shown = subprocess.run(start, capture_output=True, text=True, check=True).stdout
    assert "next-token loss" in shown
    assert "perplexity" in shown
    assert "activations" in shown
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_json_says(tmp_path: Path):
    told = json.loads(json.dumps(tersor.quantize(folder(tmp_path / "in", "llama"), [ids()], groups=8).to_json()))
    assert told["bytes"][1] < told["bytes"][0]
    assert told["perplexity"][1] == pytest.approx(math.exp(told["after"]))
    assert told["windows"] == len(told["losses"][0]) == 8
