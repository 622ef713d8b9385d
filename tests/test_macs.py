from __future__ import annotations

import torch
from torch import nn

from tersor.graph.macs import macs, products
from tersor.graph.model import capture


def test_counts_by_hand() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8 * 8 positions, 8 x 27
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 4 * 4 positions, 8 x 9
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # 4 * 4 input positions, 8 x 16
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    counted = macs(capture(module, (torch.randn(2, 3, 8, 8),)))
    assert counted == {"0": 64 * 8 * 27, "1": 16 * 8 * 9, "2": 16 * 8 * 16, "4": 256 * 10}


def test_recurrent_layers_count_at_every_step() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    counted = macs(capture(Reader().eval(), (torch.randn(2, 7, 6),)))
    assert counted["lstm.weight_ih_l0"] == counted["lstm.weight_ih_l0_reverse"] == 7 * 20 * 6
    assert counted["lstm.weight_hh_l1"] == 7 * 20 * 5
    assert counted["lstm.weight_ih_l1"] == 7 * 20 * 10
    assert counted["head"] == 30
    assert len(counted) == 9


def test_a_gru_has_three_gates() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 5, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    counted = macs(capture(Reader().eval(), (torch.randn(3, 2, 4),)))
    assert counted == {"rnn.weight_ih_l0": 2 * 15 * 4, "rnn.weight_hh_l0": 2 * 15 * 5}


def test_products_of_several_matrices_are_counted() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bi,io,oj->bj", x, self.a, self.b)

    counted = products(capture(Three(), (torch.randn(2, 8),)))
    assert counted == {"aten.einsum": 8 * 6 + 6 * 4}
