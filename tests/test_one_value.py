"""Tensors of one value, and axes that are cut to one block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor import prune
from tersor.graph.model import capture
from tersor.maths.bits import raw
from tersor.measuring.batches import Batch, Batches
from tersor.pruning import _known


def strided(dtype: torch.dtype) -> Tensor:
    """One value, of a column of a table: contiguous, says torch, with a stride of 17."""
    found = torch.arange(34).reshape(2, 17)[:1, 5].to(dtype)
    return torch.as_strided(torch.full((20,), found.item()).to(dtype), (1,), (17,), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_bytes_of_one_value_whatever_its_stride(dtype: torch.dtype):
    one = strided(dtype)
    assert raw(one).tolist() == raw(one.clone(memory_format=torch.contiguous_format).reshape(1).contiguous()).tolist()
    assert raw(one[0]).tolist() == raw(one).tolist()
    assert raw(one[:0]).numel() == 0


def test_bytes_stand_row_by_row():
    x = torch.randn(4, 3)
    assert bytes(raw(x.T).numpy()) == x.T.contiguous().numpy().tobytes()
    assert raw(x).data_ptr() == x.data_ptr()
    assert bytes(raw(torch.view_as_complex(x[:, :2].contiguous())).numpy()) == x[:, :2].contiguous().numpy().tobytes()


def test_a_model_and_data_of_one_value_have_digests():
    model = capture(nn.Linear(3, 1).eval(), (torch.randn(2, 3),))
    model.assign("bias", strided(torch.float32))
    assert model.copy().digest() == model.digest()
    table = torch.randn(5, 17)
    one = Batches((Batch((table[:1, :3],), table[:1, 5]),))
    again = Batches((Batch((table[:1, :3].clone(),), table[:1, 5].clone()),))
    assert one.digest() == again.digest()


def test_an_axis_that_is_cut_to_one_block_is_listed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    x = torch.randn(64, 12)
    found = prune((net, x[:2]), list(x.split(32)), macs="4x", metric="cosine", recover="1epochs")
    assert dict(found.widths) == {"0": (1, 4)}


def test_groups_of_one_layer_keep_their_names_over_several_rounds():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model = capture(Heads().eval(), (torch.randn(2, 3, 8),))
    blocks = {"q": 2, "q#2": 4, "v": 4}
    assert _known(blocks, model).items() >= {"q": "q", "q#2": "q#2"}.items()
    assert _known({**blocks, "q": 1}, model)["q"] == "q#2"
