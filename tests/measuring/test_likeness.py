"""Every output is watched, and every quiet channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.errors import MetricError
from tersor.inputs.job import Job, bring, quiet, watched
from tersor.measuring.batches import Batches
from tersor.measuring.likeness import watch
from tersor.measuring.metrics import Predict, Score, drop, prepared
from tersor.measuring.scores import built_in
from tersor.quantising import quantize

G = np.random.default_rng(0)
X = G.standard_normal((90, 12)).astype(np.float32)
DATA = Batches.of(X, size=20)
MIX = G.standard_normal((12, 12)).astype(np.float32)


def score(metric: str, original: Predict, other: Predict, data: Batches = DATA) -> Score:
    judge = built_in(metric)
    ready = prepared(judge, data, original)
    before = judge(original, ready)
    entries = before.values() if isinstance(before, dict) else [before]
    assert list(entries) == [pytest.approx(1)] * len(entries)
    return judge(other, ready)


def two(noise: float) -> Predict:
    """Scores that never change, and a vector that does."""

    def predict(x: np.ndarray) -> dict[str, np.ndarray]:
        y = x @ MIX
        return {"class": x[:, :4], "embedding": y + noise * np.roll(y, 1, 1)}

    return predict


@pytest.mark.parametrize("metric", ["agreement", "cosine", "r2", "spearman"])
def test_a_limit_holds_for_every_output(metric: str) -> None:
    found = score(metric, two(0), two(1))
    assert isinstance(found, dict)
    assert found["class"] == pytest.approx(1)
    assert found["embedding"] < 0.8
    lost = drop(dict.fromkeys(found, 1.0), found, built_in(metric))
    assert (lost.entry, lost.within(0.01)) == ("embedding", False)


def test_outputs_of_a_tuple_and_of_other_kinds() -> None:
    def predict(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return x[:, :4], x.argmax(1), x[:, 0], x > 0

    def other(x: np.ndarray) -> tuple[np.ndarray, ...]:
        scores, best, size, flags = predict(x)
        flags = flags.copy()
        flags[:, 0] = ~flags[:, 0]
        return scores, np.where(x[:, 0] > 0, best, -1), -size, flags

    found = score("agreement", predict, other)
    equal = float((X[:, 0] > 0).mean())
    wanted = {"output_0": 1, "output_1": equal, "output_2": -1, "output_3": 11 / 12}
    assert found == pytest.approx(wanted)
    assert score("cosine", predict, other) == pytest.approx(wanted)


def loud_and_quiet(x: np.ndarray) -> np.ndarray:
    return x * np.array([1e-3, *[1.0] * 11], np.float32)


@pytest.mark.parametrize("metric", ["cosine", "r2"])
@pytest.mark.parametrize("shape", [(90, 12), (90, 12, 3, 3), (90, 5, 12)])
def test_a_quiet_channel_that_is_lost_is_seen(metric: str, shape: tuple[int, ...]) -> None:
    axis = 2 if len(shape) == 3 else 1
    x = G.standard_normal(shape).astype(np.float32)
    scale = np.ones(shape[axis], np.float32)
    scale[3] = 1e-3
    scale = scale.reshape(*(-1 if i == axis else 1 for i in range(len(shape))))

    def without(y: np.ndarray, channel: int) -> np.ndarray:
        gone = scale * y
        gone[tuple(channel if i == axis else slice(None) for i in range(gone.ndim))] = 0
        return gone

    data = Batches.of(x, size=20)
    assert score(metric, lambda y: scale * y, lambda y: without(y, 3), data) == pytest.approx(0, abs=0.02)
    loud = score(metric, lambda y: scale * y, lambda y: without(y, 4), data)
    assert 0.85 < loud < 0.98  # one of eleven loud ones
    near = score(metric, lambda y: scale * y, lambda y: scale * y * (1 + 1e-3 * np.sign(y)), data)
    assert near == pytest.approx(1, abs=1e-4)


def test_r2_of_a_quiet_channel_far_from_zero() -> None:
    """Its values are large, what it says is small."""

    def original(x: np.ndarray) -> np.ndarray:
        return np.concatenate([100 + 1e-2 * x[:, :1], 30 * x[:, 1:]], 1)

    def constant(x: np.ndarray) -> np.ndarray:
        return np.concatenate([0 * x[:, :1] + 100, 30 * x[:, 1:]], 1)

    assert score("r2", original, constant) == pytest.approx(0, abs=0.05)
    assert score("r2", original, original) == 1


def test_one_number_an_item_is_no_sign() -> None:
    def size(x: np.ndarray) -> np.ndarray:
        return 5 + x[:, :1]

    assert score("cosine", size, lambda x: 5 + 0 * x[:, :1]) < 0.99  # of signs alone it would be 1
    with pytest.raises(MetricError, match="agreement compares classes, and the output has none"):
        score("agreement", size, size)


def test_labels_of_the_user_mean_what_they_did() -> None:
    data = Batches.of(X, 2 * loud_and_quiet(X), 20)
    judge = built_in("cosine")
    assert prepared(judge, data, two(0)) is data
    assert judge(loud_and_quiet, data) == pytest.approx(1)


def test_what_nobody_looked_at_is_said() -> None:
    first, second = watch(two(0), two(1), DATA, judged=False)
    assert (first.output, first.judged, first.words("accuracy")) == ("class", True, "")
    said = "The budget does not cover the output 'embedding': accuracy does not look at it; cosine with the original 0."
    assert second.words("accuracy").startswith(said)
    assert second.value == pytest.approx(score("cosine", two(0), two(1))["embedding"])
    _, own = watch(two(0), two(1), DATA, judged=None)
    said = "It is not known whether mine looks at the output 'embedding'; cosine with the original 0."
    assert own.words("mine").startswith(said)


class Net(nn.Module):
    """Two outputs: the first hardly depends on the layers that the second is made by."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 4)
        self.deep = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.deep(x)
        return {"class": self.first(x) + 1e-3 * y[:, :4], "embedding": y}


def job(metric: object) -> Job:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.from_numpy(X)
    labels = net(x)["class"].argmax(1)
    return bring((net, x[:2]), [(x, labels)], metric, 0.0, None, 1, 1, 0, (), None, quiet)


def test_a_job_watches_what_its_metric_does_not() -> None:
    compared = job("agreement")
    assert compared.before == {"class": 1.0, "embedding": 1.0}
    assert watched(compared, two(1)) == ()
    assert [o.judged for o in watched(job("accuracy"), two(0))] == [True, False]
    assert [o.judged for o in watched(job(lambda predict, batches: 0.5), two(0))] == [None, None]


def test_a_command_says_which_outputs_nothing_was_promised_of() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(200, 12)
    labels = net(x)["class"].argmax(1)
    found = quantize((net, x[:2]), [(x, labels)], weights=2, edges=2, metric="accuracy", threads=1)
    said = [o.words(found.metric) for o in found.outputs]
    assert said[0] == ""
    assert "The budget does not cover the output 'embedding'" in said[1]
    assert found.to_json()["outputs"][1]["value"] == found.outputs[1].value < 1


def test_complex_outputs_are_alike_as_far_as_their_parts_are() -> None:
    def spectrum(x: np.ndarray) -> np.ndarray:
        return np.fft.rfft(x).astype(np.complex64)

    assert score("cosine", spectrum, spectrum) == 1
    found = score("cosine", spectrum, lambda x: spectrum(x).real + 0j * x[:, :7])
    assert isinstance(found, float)
    assert 0.5 < found < 0.9
    with pytest.raises(MetricError, match="the output has none"):
        score("agreement", spectrum, spectrum)
