"""Weight-only quantisation of language models: loss against bits, beside rounding and a peer; and memory of a large one.

    python -m benchmarks.language_quantization --peer PYTHON   # PYTHON: of an environment with llmcompressor
    python -m benchmarks.language_quantization --part held     # while developing: on text that the model wrote itself
    python -m benchmarks.language_quantization --big           # a billion random parameters: peak memory and seconds

The small model is stories260K as a Llama folder, calibrated on text that it draws itself; the loss is that of the next token
on five published stories, which nothing else reads. Plain rounding: nearest values on grids that reach the extremes. Where
what matrices read has bits, each position is on a grid of its own, in all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import environment, zoo
from benchmarks.language import paired, stories, written
from tersor.language.pack import run_of
from tersor.language.shard import NAMES, Spec, Writer
from tersor.maths.grid import Integers, PerChannel, PerGroup, absmax
from tersor.maths.ranges import by_position
from tersor.streaming import quantize_folder

RESULTS = environment.ROOT / "benchmarks" / "results" / "language_quantization.jsonl"
Cell = tuple[int, int, int, str, int]
CELLS: tuple[
    Cell, ...
] = (  # bits of weights, columns that share a scale, bits of what is read, the key/value cache, polish
    (8, 0, 0, "none", 0),
    (4, 32, 0, "none", 0),
    (3, 32, 0, "none", 0),
    (2, 32, 0, "none", 0),
    (4, 32, 0, "none", 200),
    (3, 32, 0, "none", 200),
    (2, 32, 0, "none", 200),
    (8, 0, 8, "none", 0),
    (4, 32, 8, "none", 0),
    (8, 0, 4, "none", 0),
    (8, 0, 0, "8", 0),
    (8, 0, 0, "fp8", 0),
)
BIG = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "vocab_size": 32000}
BIG_HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "bos_token_id": 1}


def llama_folder(module: nn.Module, path: Path) -> Path:
    """A network of llama2.c (`loaders.stories260k`) as a folder that transformers reads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    held = module.state_dict()
    layers = 1 + max(int(name.split(".")[1]) for name in held if name.startswith("layers."))
    width, kv = held["emb.weight"].shape[1], held["layers.0.wk.weight"].shape[0]
    heads = int(module.layers[0].nh)  # type: ignore[union-attr, index]
    config = LlamaConfig(
        vocab_size=len(held["emb.weight"]),
        hidden_size=width,
        intermediate_size=len(held["layers.0.w1.weight"]),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv * heads // width,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    places = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj"}
    places |= {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}
    places |= {"an": "input_layernorm", "fn": "post_attention_layernorm"}
    state = {"model.embed_tokens.weight": held["emb.weight"], "model.norm.weight": held["norm.weight"]}
    for i in range(layers):
        for theirs, place in places.items():
            value = held[f"layers.{i}.{theirs}.weight"]
            if theirs in ("wq", "wk"):  # pairs that turn together lie side by side there, half a head apart here
                value = value.reshape(-1, width // heads // 2, 2, width).transpose(1, 2).reshape(value.shape)
            state[f"model.layers.{i}.{place}.weight"] = value
    found = LlamaForCausalLM(config)
    found.load_state_dict(state | {"lm_head.weight": held["emb.weight"]})
    found.save_pretrained(path)
    return path


@torch.no_grad()
def losses(model: Any, ids: Tensor) -> np.ndarray:
    """Nats a token of each window."""
    scores = torch.cat([model(part).logits[:, :-1] for part in ids.split(32)])
    return F.cross_entropy(scores.mT, ids[:, 1:], reduction="none").mean(1).numpy()


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def rounded(folder: Path, bits: int, groups: int, reads: int) -> Any:
    """Each matrix at its nearest values, and what it reads, too, where `reads` bits are asked for."""
    model = loaded(folder)
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            run = run_of(layer.in_features, groups)
            grid = absmax(layer.weight.data, Integers(bits, True, PerGroup(run) if run else PerChannel()))
            layer.weight.data = grid.round(layer.weight.data).float()
            if reads:
                layer.register_forward_pre_hook(lambda _, args: (by_position(args[0], reads),))
    return model


def of_peer(python: str, folder: Path, text: Tensor, bits: int, groups: int) -> Any:
    """What the peer's environment makes."""
    script = environment.ROOT / "benchmarks" / "language_peer.py"
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/ids.npy", text.numpy())
        words = [
            python,
            str(script),
            str(folder),
            f"{place}/ids.npy",
            f"{place}/out.safetensors",
            str(bits),
            str(groups),
        ]
        subprocess.run(words, check=True, capture_output=True, cwd=place)
        model = loaded(folder)
        model.load_state_dict(load_file(f"{place}/out.safetensors"), strict=False)
    return model


def small(part: str, peer: str, threads: int, seed: int) -> dict[str, Any]:
    """The line of stories260K."""
    line = environment.record(
        benchmark="language_quantization", model="stories260k", part=part, threads=threads, seed=seed
    )
    module, tokens = zoo.loaders().stories260k()
    first = tokens.encode("Once")[0]
    text = written(module, first, seed)
    judged = stories(tokens) if part == "test" else written(module, first, seed + 1)
    with tempfile.TemporaryDirectory() as place:
        folder = llama_folder(module, Path(place) / "in")
        whole = losses(loaded(folder), judged)
        line |= {"windows": len(judged), "tokens_calibrated": text.numel(), "loss": float(whole.mean()), "rows": []}
        if peer:
            line["peer"] = _peer_versions(peer)
        for bits, groups, reads, cache, polish in CELLS:
            start = time.perf_counter()
            wish: dict[str, Any] = {
                "weights": bits,
                "groups": groups,
                "activations": reads or "none",
                "kv_cache": cache,
                "polish": polish,
            }
            out = quantize_folder(folder, [text], **wish, eval_data=[judged], threads=threads)
            seconds = time.perf_counter() - start
            ours, theirs = np.array(out.losses[1]), {}
            if cache == "none":
                theirs["rounding"] = losses(rounded(folder, bits, groups, reads), judged)
            if peer and cache == "none" and not reads and not polish:
                theirs["peer"] = losses(of_peer(peer, folder, text, bits, groups), judged)
            row: dict[str, Any] = {
                "bits": bits,
                "groups": groups,
                "activations": reads or 32,
                "kv_cache": cache,
                "polish": polish,
                "bytes": list(out.bytes),
                "seconds": round(seconds, 1),
            }
            row["ours_to_original"] = paired(ours, whole)
            row["ours"] = round(float((ours - whole).mean()), 5)
            for name, found in theirs.items():
                row[name] = round(float((found - whole).mean()), 5)
                row[f"ours_minus_{name}"] = paired(ours, found)
            line["rows"].append(row)
            print(row, flush=True)
    return line | {"load_after": environment.load()}


def _peer_versions(python: str) -> dict[str, str]:
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def random_llama(path: Path, sizes: dict[str, int], seed: int = 0) -> int:
    """A folder of random bfloat16 weights, written tensor by tensor, in two shards; how many parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig.from_dict({**sizes, **BIG_HEADS, "dtype": "bfloat16"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    draw = torch.Generator().manual_seed(seed)
    names = sorted(shapes)
    files: dict[str, str] = {}
    for number, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        specs = {name: Spec(NAMES[torch.bfloat16], shapes[name]) for name in some}
        with Writer(path / file, specs) as writer:
            for name in some:
                flat = len(shapes[name]) == 1
                value = torch.ones(shapes[name]) if flat else torch.randn(shapes[name], generator=draw) * 0.02
                writer.put(name, value.to(torch.bfloat16))
        files |= dict.fromkeys(some, file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def big(place: Path, threads: int, layers: int) -> dict[str, Any]:
    """The line of the large model: made in this process, quantised in one of its own."""
    line = environment.record(benchmark="language_quantization", model="random_llama_1b", threads=threads)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        path = Path(folder) / "in"
        path.mkdir()
        line["parameters"] = random_llama(path, BIG | {"num_hidden_layers": layers})
        words = [
            sys.executable,
            "-m",
            "benchmarks.language_quantization",
            "--child",
            str(path),
            "--threads",
            str(threads),
        ]
        told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=environment.ROOT).stdout
        line |= json.loads(told.strip().splitlines()[-1])
    return line | {"load_after": environment.load()}


def child(path: Path, threads: int) -> dict[str, Any]:
    """Quantise and say what it took."""
    ids = torch.randint(0, BIG["vocab_size"], (20, 128), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    told = _Told()
    out = quantize_folder(path, [ids], weights=4, groups=128, threads=threads, out=path.parent / "out", progress=told)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "bits": 4,
        "groups": 128,
        "windows": out.calibrated,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_bytes": peak,
        "bytes": list(out.bytes),
        "loss": [round(out.before, 4), round(out.after, 4)],
    }


class _Told:
    """Progress on stderr, with the time and the memory so far."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{time.perf_counter() - self._start:7.1f} s  {peak:.2f} GB  {stage} {done}/{total}",
            file=sys.stderr,
            flush=True,
        )


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    if "rows" not in line:
        return (
            f"{line['parameters'] / 1e9:.2f} G parameters in {line['seconds']:.0f} s, peak {line['peak_bytes'] / 1e9:.2f} GB, "
            f"{line['bytes'][0] / 1e9:.2f} GB -> {line['bytes'][1] / 1e9:.2f} GB"
        )
    out = [
        f"stories260K, loss {line['loss']:.4f} on {line['windows']} windows, part: {line['part']}; nats a token lost",
        "",
        "| weights | groups | activations | cache | bytes | ours | rounding | peer | ours - rounding [95 %] | ours - peer "
        "[95 %] | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        how = ", polished" if row.get("polish") else ""
        out.append(
            f"| {row['bits']}{how} | {row['groups'] or 'output'} | {row['activations']} | {row['kv_cache']} | "
            f"{row['bytes'][1] / 1000:.0f} k | {_loss(row, 'ours')} | {_loss(row, 'rounding')} | {_loss(row, 'peer')} | "
            f"{_interval(row.get('ours_minus_rounding'))} | {_interval(row.get('ours_minus_peer'))} | {row['seconds']:.0f} |"
        )
    return "\n".join(out)


def _loss(row: dict[str, Any], whose: str) -> str:
    return f"{row[whose]:+.4f}" if whose in row else ""


def _interval(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[1]:+.4f} [{found[0]:+.4f}, {found[2]:+.4f}]"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    parser.add_argument("--peer", default="", help="the python of an environment with llmcompressor")
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--layers", type=int, default=BIG["num_hidden_layers"], help="of the large model")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="for the large model: 3 GB")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    if given.child is not None:
        print(json.dumps(child(given.child, given.threads)))
        return
    if given.big:
        line = big(given.place, given.threads, given.layers)
    else:
        line = small(given.part, given.peer, given.threads, given.seed)
    if given.big or given.part == "test":
        environment.append(given.out, line)
    print(table(line))


if __name__ == "__main__":
    main()
