"""A convolution with as many groups as items: what feeds it cannot be pruned, everything else can be looked at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor
from tersor.graph.model import capture
from tersor.inputs.models import bring, captured
from tersor.profile import measure


class Net(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transposed = transposed
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.kernels = nn.Parameter(torch.randn(2, 4, 4, 3, 3))
        self.choose, self.head = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        kernel = (self.choose(x.mean((2, 3))).softmax(-1) @ self.kernels.flatten(1)).view(b * 4, c, 3, 3)
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        y = convolve(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b).view(b, 4, h, w)
        return self.head(torch.relu(y).mean((2, 3)))


def test_groups_that_follow_the_batch() -> None:
    for transposed in (False, True):
        net = Net(transposed).eval()
        model = captured(bring((net, torch.randn(2, 3, 6, 6))))
        for count in (1, 2, 5):
            x = torch.randn(count, 3, 6, 6)
            torch.testing.assert_close(model.run(x)[0], net(x))
        found = tersor.inspect((net, torch.randn(2, 3, 6, 6)))
        assert {"stem", "choose", "head"} <= {layer.name for layer in found.layers}
        refused = {axis.name: axis.refused for axis in found.axes}
        assert refused["stem"] is not None
        assert "has no pruning rule for these arguments" in refused["stem"]
        seen = measure(capture(net, (torch.randn(2, 3, 6, 6),)), [(torch.randn(16, 3, 6, 6),)])
        assert all(float(facts.fisher.sum()) > 0 for facts in seen.facts.values())


def test_a_filter_of_frequencies_is_cut_with_its_channels() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.filter = nn.Parameter(torch.randn(3, 8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fft.rfft(self.embed(x), dim=1) * self.filter
            return self.head(torch.fft.irfft(x, n=4, dim=1).relu().mean(1))

    found = tersor.inspect((Filter(), torch.randn(2, 4, 3)))
    assert {axis.name: axis.refused is None for axis in found.axes} == {"embed": True, "head": False}
    pruned = tersor.prune(
        (Filter(), torch.randn(2, 4, 3)), torch.randn(400, 4, 3), metric="cosine", macs="1.5x", threads=1
    )
    assert tuple(pruned.model.tensor("filter").shape) == (3, len(pruned.model.tensor("embed.weight")))
    assert len(pruned.model.tensor("embed.weight")) < 8
