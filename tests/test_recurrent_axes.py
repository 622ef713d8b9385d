"""Axes that only a recurrent layer reads have a price, and are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.errors import BudgetError
from tersor.graph.model import Model, capture
from tersor.maths.obs import Sweep
from tersor.profile import measure
from tersor.rewrites.shrink import shrink
from tersor.site import groups
from tersor.widths import allocate, curves


class Net(nn.Module):
    """A convolution, or embeddings, whose channels a recurrent layer alone reads."""

    def __init__(self, kind: type[nn.RNNBase], first: bool, both: bool):
        super().__init__()
        self.conv = nn.Conv1d(3, 12, 3, padding=1)
        self.cell = kind(12, 4, batch_first=first, bidirectional=both)
        self.head = nn.Linear(8 if both else 4, 4)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        read = self.conv(x).relu().permute(*((0, 2, 1) if self.first else (2, 0, 1)))
        y, _ = self.cell(read)
        return self.head(y[:, -1] if self.first else y[-1])


def model_of(kind: type[nn.RNNBase], first: bool = True, both: bool = False) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 6)
    net = Net(kind, first, both).eval()
    with torch.no_grad():
        net.cell.weight_ih_l0[:, 5] = 0  # one channel is read by nobody
        if both:
            net.cell.weight_ih_l0_reverse[:, 5] = 0
    return capture(net, (x[:2],)), x


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("first", "both"), [(True, False), (False, True)])
def test_what_a_recurrent_layer_reads_has_a_price(kind: type[nn.RNNBase], first: bool, both: bool):
    model, x = model_of(kind, first, both)
    profile = measure(model, [(x,)])
    found = [g for g in groups(model) if g.refused is None and not g.counted]
    swept = curves(model, profile, found)
    assert "conv" in swept
    assert swept["conv"].order[0] == 5
    assert swept["conv"].damage[1] == pytest.approx(0, abs=1e-9)
    assert all(b > a for a, b in zip(swept["conv"].damage[1:], swept["conv"].damage[2:], strict=False))


def test_the_price_is_about_what_is_lost():
    """To first order: of taking one channel out, for each channel, in the order of what is seen."""
    model, x = model_of(nn.GRU)
    price = measure(model, [(x,)], temperature=1.0).facts["cell.weight_ih_l0"]
    told = 0.5 * price.fisher * price.gram[0].diagonal()[:-1] * 6  # each position alone
    seen = []
    for channel in range(12):
        small = shrink(model, {"conv": [i for i in range(12) if i != channel]})
        p, q = (m.run(x)[0].double().log_softmax(-1) for m in (model, small))
        seen.append(float((p.exp() * (p - q)).sum() / len(x)))
    ranks = [torch.tensor(each).argsort().argsort().double() for each in (told.tolist(), seen)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.6


def test_channels_before_a_recurrent_layer_are_cut():
    model, x = model_of(nn.GRU)
    profile = measure(model, [(x,)])
    found = [g for g in groups(model) if g.refused is None and not g.counted]
    keep = allocate(model, curves(model, profile, found), found, 3000)
    assert len(keep["conv"]) < 12
    assert 5 not in keep["conv"]
    small = shrink(model, keep)
    assert small.tensor("cell.weight_ih_l0").shape[1] == small.tensor("conv.weight").shape[0] == len(keep["conv"])
    assert small.run(x)[0].shape == (32, 4)


def test_a_budget_out_of_reach_says_which_axes_have_no_price():
    model, _ = model_of(nn.GRU)
    found = [g for g in groups(model) if g.refused is None]
    with pytest.raises(BudgetError, match=r"No axis can be pruned: .*'conv'.* Give weights instead of macs"):
        allocate(model, {}, found, 1)
    some = {"conv": Sweep(tuple(range(12)), tuple(map(float, range(13))))}
    with pytest.raises(BudgetError, match=r"Even one block per group leaves .*'cell.weight_ih_l0'.* cannot be pruned"):
        allocate(model, some, found, 1)


def test_projections_are_left_as_they_are():
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.LSTM(4, 8, proj_size=5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cells(x)[0][:, -1])

    found = groups(capture(Projected().eval(), (torch.randn(2, 3, 4),)))
    assert [group.refused is None for group in found] == [False]
