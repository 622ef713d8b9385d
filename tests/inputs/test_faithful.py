"""The captured graph is the module, or it is refused with the user's line."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import ModelError
from tersor.graph import faithful
from tersor.inputs import job
from tersor.inputs.models import bring, captured, captured_whole
from tersor.measuring.batches import Batches


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is compared, however slow the machine is."""
    monkeypatch.setattr(faithful, "SECONDS", 300.0)


class Net(nn.Module):
    """Computes `how(self, x)`; holds everything that a forward pass might move."""

    def __init__(self, how: Callable[..., Tensor]):
        super().__init__()
        self.how = how
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6))
        self.register_buffer("level", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.count, self.log = 0, []

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def refusal(how: Callable[..., Tensor]) -> tuple[str, str]:
    """The sentence, and the code of the line that it names."""
    with pytest.raises(ModelError) as raised:
        captured(bring((Net(how).eval(), torch.randn(2, 12))))
    message = str(raised.value)
    assert "\n" not in message
    found = re.search(r'File "(.*test_faithful\.py)", line (\d+), in \w+', message)
    assert found is not None, message
    with open(found[1]) as source:
        return message, source.read().splitlines()[int(found[2]) - 1].strip()


def one(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    other = x.shape[0] == 1
    return -y if other else y


def odd(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    if x.shape[0] % 2:
        return -y
    return y


def large(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    if x.shape[0] > 1000:
        y = -y
    return y


def counted(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    return y.reshape(len(x), -1)


@pytest.mark.parametrize(
    ("how", "line", "size"),
    [
        (one, "other = x.shape[0] == 1", "a batch of 1"),
        (odd, "if x.shape[0] % 2:", "a batch of 1"),
        (large, "if x.shape[0] > 1000:", "a batch of 1001"),
        (counted, "return y.reshape(len(x), -1)", "one batch size only"),
    ],
)
def test_a_branch_on_the_batch_size_is_refused(how: Callable[..., Tensor], line: str, size: str) -> None:
    message, code = refusal(how)
    assert code == line
    assert size in message
    assert "independent of the batch size" in message


def test_a_branch_that_computes_the_same_is_taken() -> None:
    def in_parts(net: Net, x: Tensor) -> Tensor:
        return torch.cat([net.body(x[:8]), net.body(x[8:])]) if x.shape[0] > 8 else net.body(x)

    assert captured(bring((Net(in_parts), torch.randn(2, 12)))).run(torch.randn(20, 12))[0].shape == (20, 6)


def centered(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    mean = y.mean(0)
    return y - 1e-3 * mean


def shared(net: Net, x: Tensor) -> Tensor:
    return net.body(x).softmax(0)


def shifted(net: Net, x: Tensor) -> Tensor:
    y = net.body(x).flip(0)
    return y + 1


def placed(net: Net, x: Tensor) -> Tensor:
    return net.body(x) + torch.arange(x.shape[0])[:, None]


def divided(net: Net, x: Tensor) -> Tensor:
    return net.body(x) / x.shape[0]


def ranked(net: Net, x: Tensor) -> Tensor:
    return net.body(x).sort(0).values


def quieted(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    loudest = y.abs().max()
    return y / loudest


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (quieted, "loudest = y.abs().max()"),
        (centered, "mean = y.mean(0)"),
        (shared, "return net.body(x).softmax(0)"),
        (shifted, "y = net.body(x).flip(0)"),
        (placed, "return net.body(x) + torch.arange(x.shape[0])[:, None]"),
        (divided, "return net.body(x) / x.shape[0]"),
        (ranked, "return net.body(x).sort(0).values"),
    ],
)
def test_items_that_mix_are_refused(how: Callable[..., Tensor], line: str) -> None:
    message, code = refusal(how)
    assert code == line
    assert "mixes the items of a batch" in message


def drawn(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    factor = float(np.random.rand())
    return y * factor


def tossed(net: Net, x: Tensor) -> Tensor:
    noise = random.random() * 1e-9
    return net.body(x) + noise


def unseeded(net: Net, x: Tensor) -> Tensor:
    noise = float(np.random.default_rng().normal())
    return net.body(x) + noise


def dropped(net: Net, x: Tensor) -> Tensor:
    return F.dropout(net.body(x), 0.3, training=True)


def leaky(net: Net, x: Tensor) -> Tensor:
    return F.rrelu(net.body(x), training=True)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (drawn, "factor = float(np.random.rand())"),
        (tossed, "noise = random.random() * 1e-9"),
        (unseeded, "noise = float(np.random.default_rng().normal())"),
        (dropped, "return self.how(self, x)"),
        (leaky, "return F.rrelu(net.body(x), training=True)"),
    ],
)
def test_chance_is_refused(how: Callable[..., Tensor], line: str) -> None:
    message, code = refusal(how)
    assert code == line
    assert "draws random numbers" in message or "called again" in message


def followed(net: Net, x: Tensor) -> Tensor:
    net.level.mul_(0.7).add_(0.3 * x.mean(0))
    return net.body(x - 2 * net.level)


def multiplied(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    return net.body(x) * net.count


def late(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    return -net.body(x) if net.count > 500 else net.body(x)


def remembered(net: Net, x: Tensor) -> Tensor:
    net.log.append(1)
    return net.body(x) * len(net.log)


def decayed(net: Net, x: Tensor) -> Tensor:
    net.body[0].weight.data.mul_(0.9)
    return net.body(x)


@pytest.mark.parametrize(
    ("how", "line", "name"),
    [
        (followed, "net.level.mul_(0.7).add_(0.3 * x.mean(0))", "buffer 'level'"),
        (multiplied, "net.count += 1", "'count'"),
        (late, "net.count += 1", "'count'"),
        (remembered, "net.log.append(1)", "'log'"),
        (decayed, "net.body[0].weight.data.mul_(0.9)", "parameter 'body.0.weight'"),
    ],
)
def test_a_state_that_counts_is_refused(how: Callable[..., Tensor], line: str, name: str) -> None:
    message, code = refusal(how)
    assert code == line
    assert name in message


def test_counters_that_no_output_reads_are_taken_and_left_as_they_were() -> None:
    def counting(net: Net, x: Tensor) -> Tensor:
        net.calls += 1
        net.count += 1
        net.log.append(x)
        net.last = x
        return net.body(x)

    net = Net(counting).train()
    model, original = captured_whole(bring((net, torch.randn(2, 12))))
    x = torch.randn(5, 12)
    torch.testing.assert_close(original(x), model.run(x))
    assert (int(net.calls), net.count, net.log, hasattr(net, "last")) == (0, 0, [], False)
    assert int(model.tensor("calls")) == 0 if "calls" in dict(model.tensors()) else True
    assert net.training


def scaled(net: Net, x: Tensor) -> Tensor:
    x.mul_(0.5).sub_(0.1)
    return net.body(x)


def sliced(net: Net, x: Tensor) -> Tensor:
    x[:, 0] = x[:, 0] * 3
    return net.body(x)


@pytest.mark.parametrize("how", [scaled, sliced])
def test_an_input_written_in_place_is_left_alone(how: Callable[..., Tensor]) -> None:
    net, x = Net(how), torch.randn(3, 12)
    example = x.clone()
    model, original = captured_whole(bring((net, example)))
    assert torch.equal(example, x)
    before = x.clone()
    (found,), (wanted,) = model.run(x), original(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, how(net, x.clone()))
    model.interpret((x,), lambda node, value: value)
    again = model.program().module()
    again(x)
    assert torch.equal(x, before)


def test_the_original_is_scored_as_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def plain(net: Net, x: Tensor) -> Tensor:
        calls.append(type(x))
        x.mul_(0.5)
        return net.body(x)

    data = torch.randn(400, 12)
    kept = data.clone()
    batches = Batches.of(data)
    found = job.bring(Net(plain), batches, "agreement", 0.0, None, 1, 1, 0, (), None, job.quiet)
    assert found.before == 1.0
    assert torch.equal(data, kept)
    before = len(calls)
    found.original(data[:4].numpy())
    assert calls[before:] == [Tensor]


def test_an_output_of_one_item_without_its_axis_is_fine() -> None:
    def squeezed(net: Net, x: Tensor) -> Tensor:
        return net.body(x)[:, :1].squeeze()

    assert captured(bring((Net(squeezed), torch.randn(2, 12)))).run(torch.randn(3, 12))[0].shape == (3,)


def test_an_output_whose_first_axis_is_no_batch_is_refused() -> None:
    """As many layers as the example has items."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(4, 5, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, (state, _) = self.cells(x)
            return y, state

    with pytest.raises(ModelError, match=r"Output 'output_1' has the shape \(2, 5, 5\) for a batch of 5"):
        captured(bring((Last(), torch.randn(2, 3, 4))))


CALLS, ENTRIES = 0, [0]


class Counting(Net):
    total = 0


def in_a_global(net: Net, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return -net.body(x) if CALLS > 40 else net.body(x)


def in_a_list(net: Net, x: Tensor) -> Tensor:
    ENTRIES[0] += 1
    return -net.body(x) if ENTRIES[0] > 40 else net.body(x)


def in_a_class(net: Net, x: Tensor) -> Tensor:
    type(net).total += 1
    return -net.body(x) if net.total > 40 else net.body(x)


def in_a_dict(net: Net, x: Tensor) -> Tensor:
    net.held["calls"] += 1
    return -net.body(x) if net.held["calls"] > 5000 else net.body(x)


@pytest.mark.parametrize(
    ("how", "line", "name"),
    [
        (in_a_global, "CALLS += 1", "'CALLS'"),
        (in_a_list, "ENTRIES[0] += 1", "'ENTRIES'"),
        (in_a_class, "type(net).total += 1", "'Counting.total'"),
        (in_a_dict, 'net.held["calls"] += 1', "'held.calls'"),
    ],
)
def test_calls_that_are_counted_anywhere_are_refused(how: Callable[..., Tensor], line: str, name: str) -> None:
    net = Counting(how).eval()
    net.held = {"calls": 0}
    with pytest.raises(ModelError) as raised:
        captured(bring((net, torch.randn(2, 12))))
    message = str(raised.value)
    found = re.search(r'File "(.*test_faithful\.py)", line (\d+), in \w+', message)
    assert found is not None, message
    with open(found[1]) as source:
        assert source.read().splitlines()[int(found[2]) - 1].strip() == line
    assert name in message


class Awake(nn.Dropout):
    """Dropout that stays on, as a Monte Carlo estimate wants it."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


@pytest.mark.parametrize("kind", [nn.Dropout, Awake, nn.BatchNorm1d, nn.Linear])
def test_a_part_that_was_left_in_training_mode(kind: Callable[..., nn.Module]) -> None:
    """It is refused where it would compute something else; a head that was put in after `eval()` would not."""
    net = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Sequential(nn.ReLU())).eval()
    net[2].append(kind(0.5) if issubclass(kind, nn.Dropout) else kind(*[6] * (2 if kind is nn.Linear else 1)))
    assert net[2][1].training
    if kind is nn.Linear:
        captured(bring((net, torch.randn(2, 12))))
    else:
        with pytest.raises(ModelError, match=r"'2\.1' is in training mode within a model that is in evaluation mode"):
            captured(bring((net, torch.randn(2, 12))))
    assert net[2][1].training
    assert not net.training


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [True, False])
def test_what_torch_does_with_padding_outside_of_export_is_named(nested: bool) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            return self.body(x, src_key_padding_mask=padded)

    torch.manual_seed(0)
    padded = torch.arange(5) >= torch.tensor([[5], [3], [2], [4], [5]])
    net = Tagger().eval(), (torch.randn(5, 5, 8), padded)
    if nested:
        with pytest.raises(ModelError, match="enable_nested_tensor=False"):
            captured(bring(net))
    else:
        captured(bring(net))
