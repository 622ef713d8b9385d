"""Measuring: Gram matrices, Fisher, ranges, and the refusal of data that says nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tersor.errors import DataError
from tersor.graph.model import capture
from tersor.maths.histogram import MOVES, Histogram
from tersor.profile import measure


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(F.relu(self.depthwise(F.relu(self.conv(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return capture(Net(), (torch.randn(2, 3, 7, 7),))


@pytest.fixture(scope="module")
def data():
    return [(x,) for x in torch.randn(96, 3, 7, 7, generator=torch.Generator().manual_seed(1)).split(40)]


def test_gram_is_the_mean_over_positions_with_the_constant_last(model, data, monkeypatch):
    monkeypatch.setattr("tersor.maths.gram.NEGLIGIBLE", float("inf"))  # nothing is shrunk
    profile = measure(model, data)
    x = torch.cat([b for (b,) in data])
    h = F.relu(F.conv2d(x, model.tensor("conv.weight"), model.tensor("conv.bias"), padding=1))
    u = F.unfold(h, 3, stride=2).reshape(96, 4, 9, -1).permute(1, 0, 3, 2).reshape(4, -1, 9).double()
    gram = profile.facts["depthwise"].gram
    assert gram.shape == (4, 10, 10)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram[:, :9, :9], u.mT @ u / u.shape[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gram[:, 9, :9], u.mean(1), rtol=1e-5, atol=1e-7)
    assert torch.equal(gram[:, 9, 9], torch.ones(4, dtype=torch.float64))
    assert profile.items == 96


def test_fisher_agrees_with_the_exact_expectation_over_labels(model, data):
    fisher = measure(model, data * 15, frozenset({"fisher"}), temperature=1.0).facts["head"].fisher
    x = torch.cat([b for (b,) in data])
    p = model.run(x)[0].softmax(1).double()
    torch.testing.assert_close(fisher, (p * (1 - p)).mean(0), rtol=0.1, atol=0.0)


def test_fisher_of_a_regression_needs_no_labels():
    net = capture(nn.Linear(3, 1, bias=False), (torch.randn(2, 3),))
    g = measure(net, [(torch.randn(4000, 3),)], frozenset({"fisher"})).facts
    torch.testing.assert_close(next(iter(g.values())).fisher, torch.ones(1, dtype=torch.float64), rtol=0.1, atol=0.0)


def test_fisher_of_a_convolution_matches_item_by_item_autograd(model):
    x = torch.randn(3, 3, 7, 7)
    g = measure(model, [(x,)], frozenset({"fisher"}), seed=3, temperature=1.0).facts["conv"].fisher
    p = model.run(x)[0].softmax(-1)
    half = p.sqrt() * torch.randn(p.shape, generator=torch.Generator().manual_seed(4))
    draws = half - p * half.sum(-1, keepdim=True)
    total = torch.zeros(4, dtype=torch.float64)
    for item, draw in zip(x, draws, strict=True):
        y = F.conv2d(item[None], model.tensor("conv.weight"), model.tensor("conv.bias"), padding=1).requires_grad_()
        h = F.relu(F.conv2d(F.relu(y), *[model.tensor(f"depthwise.{k}") for k in ("weight", "bias")], 2, groups=4))
        out = F.linear(h.mean((2, 3)), model.tensor("head.weight"), model.tensor("head.bias"))
        total += torch.autograd.grad((out[0] * draw).sum(), y)[0].square().sum((0, 2, 3)).double()
    torch.testing.assert_close(g, total / 3, rtol=1e-4, atol=1e-10)


def test_ranges_hold_every_float_activation(model, data):
    profile = measure(model, data)
    x = torch.cat([b for (b,) in data])
    seen = profile.ranges[model.inputs[0]]
    assert (seen.low, seen.high) == (float(x.min()), float(x.max()))
    assert seen.counts.sum() == x.numel()
    assert len(seen.edges) == len(seen.counts) + 1
    assert seen.edges[0] <= seen.low
    assert seen.edges[-1] >= seen.high
    assert {"conv2d", "relu", "linear"} <= set(profile.ranges)


def test_same_seed_same_profile_and_parts_do_not_matter(model, data):
    one, two = measure(model, data, seed=5), measure(model, iter(data), seed=5, memory=1)
    for name, facts in one.facts.items():
        assert torch.equal(facts.gram, measure(model, data, seed=5).facts[name].gram)
        torch.testing.assert_close(facts.gram, two.facts[name].gram, rtol=0.2, atol=0.05)
    assert one.ranges.keys() == two.ranges.keys()
    assert one.items == two.items


def test_large_activations_are_sampled():
    net = capture(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 2)), (torch.randn(2, 1, 32, 32),)
    )
    heard = []
    measure(net, [(torch.randn(70, 1, 32, 32),)], progress=heard.append)
    assert heard == [64, 70]


def replaced(data, value, where=(0, 1, 2, 3)):
    x = data[0][0].clone()
    x[where] = value
    return [(x,), *data[1:]]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda d: [], "empty"),
        (lambda d: [(d[0][0][:0],)], "empty"),
        (lambda d: replaced(d, float("nan")), r"Batch 0 .* NaN or Inf in input 'x' \(1 of .* first at \(0, 1, 2, 3\)"),
        (lambda d: [d[0], *replaced(d, float("inf"))], "Batch 1 .* NaN or Inf"),
        (lambda d: replaced(d, 1e30), "values as large as 1e\\+30"),
        (lambda d: [(torch.zeros_like(x),) for (x,) in d], "every value of input 'x' in all 96 items is 0"),
        (lambda d: [(x[:, :2],) for (x,) in d], r"gives 'x' as float32 \(40, 2, 7, 7\)"),
        (lambda d: [(x.double(),) for (x,) in d], "float64"),
        (lambda d: [(x, torch.zeros(len(x))) for (x,) in d], "holds 2 tensors; the model takes 1"),
    ],
)
def test_bad_data_is_a_sentence(model, data, broken, sentence):
    with pytest.raises(DataError, match=sentence):
        measure(model, broken(data))


def test_activation_that_overflows_is_named(data):
    net = Net()
    nn.init.constant_(net.depthwise.weight, 3e38)
    with pytest.raises(DataError, match="begin in its activation 'conv2d_1'"):
        measure(capture(net, (torch.randn(2, 3, 7, 7),)), data)


def test_histogram_widens_without_losing_counts():
    histogram = Histogram(bins=64)
    values = [torch.tensor([0.5]), torch.randn(100), 50 * torch.randn(1000), torch.tensor([-1e4])]
    for value in values:
        histogram.update(value)
    every = torch.cat(values)
    assert histogram.counts.sum() == len(every)
    assert (histogram.low, histogram.high) == (float(every.min()), float(every.max()))
    expected = torch.histc(every.double(), 64, float(histogram.edges[0]), float(histogram.edges[-1]))
    torch.testing.assert_close(histogram.counts, expected)


def test_the_usual_extremes_follow_every_item():
    histogram = Histogram()
    values = torch.randn(70, 4, 5)
    for some in (values[:1], values[1:40], values[40:]):
        histogram.update(some)
    low, high = (float(f(values[0])) for f in (torch.min, torch.max))
    for item in values:  # one after the other, as its source does
        low, high = low + MOVES * (float(item.min()) - low), high + MOVES * (float(item.max()) - high)
    assert histogram.usual == pytest.approx((low, high), rel=1e-6)
    assert histogram.low < histogram.usual[0]


def test_the_histogram_does_not_sample_one_column_only() -> None:
    """A stride that divides the width of an image would see its padding and nothing else."""
    image = torch.ones(32, 384, 16, 16)
    image[..., 0] = 0.0
    histogram = Histogram(bins=2)
    histogram.update(image)
    share = histogram.counts[0] / histogram.counts.sum()
    assert 0.05 < share < 0.08  # truly 1 / 16


def test_gradients_of_weights_are_those_of_every_item_alone():
    """A softmax over z = W x + b has dL/dW = (p - onehot) x^T; its square's mean over sampled labels is p (1 - p) x^2."""
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    x = torch.randn(40, 5)
    model = capture(module, (x[:2],))
    needs = frozenset({"gram", "fisher", "gradient"})
    found = [measure(model, [(x[:30],), (x[30:],)], needs, seed=s, temperature=1.0).facts for s in range(60)]
    seen = torch.stack([next(iter(facts.values())).gradient for facts in found]).mean(0)
    p = module(x).softmax(1).detach().double()
    wanted = torch.einsum("ni,nj->ij", p * (1 - p), x.double().square()) / len(x)
    torch.testing.assert_close(seen[0], wanted, rtol=0.15, atol=0.01)


def test_every_matrix_that_reads_a_shared_weight_knows_its_gradients():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Linear(4, 4)

        def forward(self, x):
            return self.both(self.both(x).relu())

    torch.manual_seed(0)
    x = torch.randn(16, 4)
    model = capture(Twice(), (x[:2],))
    facts = measure(model, [(x,)], frozenset({"gram", "gradient"})).facts
    assert facts
    assert all(each.gradient is not None for each in facts.values())
