"""What attention hands on is rotated where that gains; the block is the same function either way."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lmfolders import folder, ids
from torch import nn

from tersor.language import rotating
from tersor.language.decoder import Decoder
from tersor.language.folder import open_folder
from tersor.language.pack import Scheme
from tersor.language.reading import Site, sites
from tersor.language.rotating import rotate


def opened(path: Path, name: str) -> tuple[nn.Module, Any, list[Site]]:
    """The first block, what runs it, and its sites."""
    decoder = Decoder(open_folder(folder(path / "in", name)))
    block = decoder.block(0)
    run = partial(decoder.run, index=0, hidden=decoder.enter(ids(8)))
    linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    return block, run, sites(block, run, linears)


def schemes(found: list[Site], scheme: Scheme) -> dict[str, Scheme]:
    return {name: scheme for site in found for name in site.names}


@pytest.mark.parametrize(
    ("name", "reader"),
    [("llama", "o_proj"), ("llama_tied", "o_proj"), ("opt", "out_proj"), ("gemma3", "o_proj"), ("gpt_neox", "")],
)
def test_the_values_of_heads_are_found_and_the_block_stays_the_same(
    tmp_path: Path, monkeypatch: Any, name: str, reader: str
):
    monkeypatch.setattr(rotating, "CLEARLY", 1e9)
    block, run, found = opened(tmp_path, name)
    before, then = run(block), {n: p.clone() for n, p in block.named_parameters()}
    pairs = rotate(block, run, found, schemes(found, Scheme(4, 0)))
    assert pairs == ([("self_attn.v_proj", f"self_attn.{reader}")] if reader else [])  # gpt_neox fuses its values
    torch.testing.assert_close(run(block), before, rtol=1e-5, atol=1e-5)
    changed = {n.removesuffix(".weight") for n, p in block.named_parameters() if not torch.equal(p, then[n])}
    assert {n.removesuffix(".bias") for n in changed} == {each for pair in pairs for each in pair}


def test_a_loud_channel_is_spread_where_inputs_have_few_bits(tmp_path: Path):
    block, run, found = opened(tmp_path, "llama")
    attention = block.get_submodule("self_attn")
    attention.v_proj.weight.data[::8] *= 30.0
    assert rotate(block, run, found, schemes(found, Scheme(8, 0, 4))) == [("self_attn.v_proj", "self_attn.o_proj")]


def test_nothing_moves_where_nothing_is_gained(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(rotating, "CLEARLY", 0.0)
    block, run, found = opened(tmp_path, "llama")
    then = {n: p.clone() for n, p in block.named_parameters()}
    assert rotate(block, run, found, schemes(found, Scheme(2, 0))) == []
    assert all(torch.equal(p, then[n]) for n, p in block.named_parameters())
