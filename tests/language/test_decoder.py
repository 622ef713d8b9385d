from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lmfolders import configurations, folder, ids, model
from torch import nn

from tersor.errors import ModelError
from tersor.language.decoder import Decoder, decoder_blocks
from tersor.language.folder import open_folder
from tersor.language.reading import sites


@pytest.mark.parametrize("name", configurations())
def test_block_by_block_is_the_whole_model(tmp_path: Path, name: str):
    decoder = Decoder(open_folder(folder(tmp_path, name)))
    some = ids(3, 11)
    hidden = decoder.enter(some)
    for i in range(len(decoder.blocks)):
        hidden = decoder.run(decoder.block(i), i, hidden)
    with torch.no_grad():
        assert torch.equal(decoder.leave(some, hidden), model(name)(some).logits)
    assert all(p.is_meta for p in decoder.blocks.parameters())


def test_what_reads_what_is_found(tmp_path: Path):
    decoder = Decoder(open_folder(folder(tmp_path, "llama")))
    block, hidden = decoder.block(0), decoder.enter(ids(2))
    inside = [name for name, m in block.named_modules() if isinstance(m, nn.Linear)]
    found = sites(block, lambda b: decoder.run(b, 0, hidden), inside)
    assert [site.names for site in found] == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]
    assert [site.joins for site in found] == [None, "", None, "post_attention_layernorm"]


@pytest.mark.parametrize(("name", "joins"), [("gpt_neox", [None, None]), ("opt", ["", "final_layer_norm"])])
def test_residual_streams_of_other_builds(tmp_path: Path, name: str, joins: list):
    decoder = Decoder(open_folder(folder(tmp_path, name)))
    block, hidden = decoder.block(0), decoder.enter(ids(2))
    inside = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    found = sites(block, lambda b: decoder.run(b, 0, hidden), inside)
    assert [site.joins for site in found if site.names[-1] in ("out_proj", "self_attn.out_proj", "fc2")] == joins or [
        site.joins for site in found if len(site.names) == 1 and ("dense" in site.names[0])
    ][-2:] == joins


def test_a_model_without_a_list_of_blocks_is_refused(tmp_path: Path):
    opened = open_folder(folder(tmp_path, "llama"))
    with pytest.raises(ModelError, match=r"Sequential has no list of decoder blocks of one class"):
        decoder_blocks(nn.Sequential(nn.Linear(2, 2)), opened)
