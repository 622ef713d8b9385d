from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmfolders import folder, ids, model, rebuilt
from torch import Tensor

import tersor
from tersor.language import easing, walk
from tersor.language.decoder import Decoder
from tersor.language.easing import CLEARLY, Move, ease
from tersor.language.folder import open_folder
from tersor.language.reading import sites
from tersor.maths.grid import Integers, PerChannel
from tersor.maths.ranges import by_position
from tersor.maths.smoothing import best_scale

INT8 = Integers(8, True, PerChannel())
NORMS = ("input_layernorm", "post_attention_layernorm")


def drawn(x: Tensor, w: Tensor, kind: Any, read: Any, clearly: float, owner: Tensor) -> Tensor:
    """Some powers of two."""
    return 2.0 ** torch.randint(-3, 4, (int(owner.max()) + 1,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "givers"),
    [
        ("llama", [NORMS[0], "self_attn.v_proj", NORMS[1], "mlp.up_proj"]),  # values shared by two queries
        ("llama_tied", [NORMS[0], "self_attn.v_proj", NORMS[1], "mlp.up_proj"]),
        ("opt", ["self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1"]),  # a ReLU between
        ("gemma3", [None, "self_attn.v_proj", None, "mlp.up_proj"]),  # norms that add one to their weight
        ("gpt_neox", [NORMS[0], None, NORMS[1], None]),  # values within a fused matrix, a GELU between
    ],
)
def test_givers_are_found_and_the_block_stays_the_same(tmp_path: Path, monkeypatch: Any, name: str, givers: list):
    monkeypatch.setattr(easing, "best_scale", drawn)
    decoder = Decoder(open_folder(folder(tmp_path / "in", name)))
    hidden = decoder.enter(ids(8))
    block = decoder.block(0)
    run = partial(decoder.run, index=0, hidden=hidden)
    before, then = run(block), {n: p.clone() for n, p in block.named_parameters()}
    linears = [n for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)]
    moves: list[Move | None] = []
    done: dict[str, list[Tensor]] = {}
    for site in sites(block, run, linears):
        moves.append(ease(block, run, site, done, INT8, 8, torch.float32))
        done |= {n: [torch.ones(block.get_submodule(n).out_features)] for n in site.names}  # type: ignore[list-item]
    assert [move and move.giver for move in moves] == givers
    torch.testing.assert_close(run(block), before, rtol=1e-5, atol=1e-5)
    changed = {n.rpartition(".")[0] for n, p in block.named_parameters() if not torch.equal(p, then[n])}
    assert {g for g in givers if g} <= changed


def loud(path: Path, name: str) -> Path:
    """A folder whose norms make three channels 64 times as large, which their readers take back: the same function."""
    found = model(name)
    for block in found.model.layers:
        gain = torch.ones(32)
        gain[[3, 11, 20]] = 64.0
        for norm, readers in zip(NORMS, (("self_attn", "qkv"), ("mlp", ("gate", "up"))), strict=True):
            block.get_submodule(norm).weight.data *= gain
            for reader in readers[1]:
                block.get_submodule(f"{readers[0]}.{reader}_proj").weight.data /= gain
    found.save_pretrained(path)
    return path


def test_a_few_loud_channels_do_not_take_the_grid_of_a_position(tmp_path: Path, monkeypatch: Any):
    loud(tmp_path / "in", "llama")
    with_it = tersor.quantize(tmp_path / "in", [ids()], weights=8, activations=8, out=tmp_path / "out")
    monkeypatch.setattr(walk, "ease", lambda *_: None)
    without = tersor.quantize(tmp_path / "in", [ids()], weights=8, activations=8)
    apart = [np.abs(np.subtract(*found.losses)).mean() for found in (with_it, without)]
    assert apart[0] < 0.25 * apart[1]
    small, was = rebuilt(tmp_path / "out", "llama").model.layers[0], model("llama").model.layers[0]
    gain = small.input_layernorm.weight / was.input_layernorm.weight
    assert set(gain.log2().round().tolist()) != {0.0}  # what was written has moved
    assert torch.allclose(gain.log2(), gain.log2().round())


def test_scales_take_loudness_from_inputs_and_leave_quiet_ones_alone():
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(300, 40, generator=draw), torch.randn(30, 40, generator=draw)
    owner = torch.arange(40)
    assert best_scale(x, w, INT8, partial(by_position, bits=8), CLEARLY, owner) is None
    x[:, 5], w[:, 5] = x[:, 5] * 256, w[:, 5] / 256
    x[:, 7] = 0.0
    scale = best_scale(x, w, INT8, partial(by_position, bits=8), CLEARLY, owner)
    assert scale is not None
    assert scale[5] >= 16 * scale[torch.arange(40) != 5].amax()
    assert scale[7] == 1
    assert torch.equal(scale.log2(), scale.log2().round())
