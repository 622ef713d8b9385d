"""Small language models of several architectures, as folders; and what a folder of packed codes says, read independently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tersor.language.pack import unpacked

transformers = pytest.importorskip("transformers")
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "bos_token_id": 1}
LLAMA = {**COMMON, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configurations() -> dict[str, Any]:
    t = transformers
    return {
        "llama": t.LlamaConfig(**LLAMA),
        "llama_tied": t.LlamaConfig(**{**LLAMA, "intermediate_size": 44, "tie_word_embeddings": True}),
        "qwen2": t.Qwen2Config(**LLAMA),
        "gpt_neox": t.GPTNeoXConfig(**COMMON, intermediate_size=64),
        "gpt_neox_sequential": t.GPTNeoXConfig(**COMMON, intermediate_size=64, use_parallel_residual=False),
        "opt": t.OPTConfig(**COMMON, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128),
        "bloom": t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64),
        "gemma3": t.Gemma3TextConfig(**{**LLAMA, "num_hidden_layers": 3}, head_dim=8, sliding_window=4),
    }


def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """With weights that all matter, the same every time."""
    torch.manual_seed(0)
    found = transformers.AutoModelForCausalLM.from_config(configurations()[name]).eval()
    for parameter in found.parameters():
        if parameter.ndim == 2:
            parameter.data = 0.2 * torch.randn_like(parameter)
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    found.tie_weights()
    return found.to(dtype)


def folder(path: Path, name: str, dtype: torch.dtype = torch.float32, shards: str = "50GB") -> Path:
    model(name, dtype).save_pretrained(path, max_shard_size=shards)
    return path


def ids(windows: int = 40, length: int = 16, vocabulary: int = 64) -> Tensor:
    return torch.randint(0, vocabulary, (windows, length), generator=torch.Generator().manual_seed(1))


def dense(path: Path) -> dict[str, Tensor]:
    """The state of a written folder with every matrix of codes in floats."""
    held = load_file(path / "model.safetensors")
    bits = {
        g["weights"]["num_bits"]
        for g in json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"].values()
    }
    (only,) = bits
    for key in [k for k in held if k.endswith(".weight_packed")]:
        name = key.removesuffix("_packed")
        rows, columns = held.pop(f"{name}_shape").tolist()
        scale = held.pop(f"{name}_scale")
        codes = unpacked(held.pop(key), only, columns)
        held[name] = codes.to(scale.dtype) * scale.repeat_interleave(columns // scale.shape[1], 1)
        assert held[name].shape == (rows, columns)
    for name in [k for k, t in held.items() if t.dtype == torch.int8]:
        scale = held.pop(f"{name}_scale")
        held[name] = held[name].to(scale.dtype) * scale.repeat_interleave(held[name].shape[1] // scale.shape[1], 1)
    return held


def rebuilt(path: Path, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The architecture with the values of a written folder, without compressed-tensors."""
    plain = path.parent / f"{path.name}-dense"
    plain.mkdir()
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    save_file(dense(path), plain / "model.safetensors", {"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=dtype).eval()
