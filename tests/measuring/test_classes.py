"""Which axis holds the classes, which labels are classes, and what is refused rather than scored by another reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tersor.errors import MetricError
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import Metric, prepared
from tersor.measuring.scores import built_in

G = np.random.default_rng(0)
ACCURACY = built_in("accuracy")


def net(*layers: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Layers with values of their own, as a metric calls them."""
    module = nn.Sequential(*layers).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return predict


def normal(*shape: int) -> np.ndarray:
    return G.standard_normal(shape).astype(np.float32)


class ChannelsLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1)


AXES = {
    "as many classes as pixels": (net(nn.Conv2d(3, 8, 3, padding=1)), normal(40, 3, 8, 8), 1),
    "as many channels, too": (net(nn.Conv2d(8, 8, 3, padding=1)), normal(40, 8, 8, 8), 1),
    "as many pixels after a stride": (net(nn.Conv2d(3, 8, 2, stride=2)), normal(40, 3, 16, 16), 1),
    "as many classes as steps": (net(nn.Conv1d(3, 12, 3, padding=1)), normal(40, 3, 12), 1),
    "volumes": (net(nn.Conv3d(2, 4, 1)), normal(20, 2, 4, 4, 4), 1),
    "steps before features": (net(nn.Linear(3, 12)), normal(40, 12, 3), 2),
    "images with channels last": (net(nn.Linear(3, 8)), normal(40, 8, 8, 3), 3),
    "as many tokens as classes": (net(nn.Embedding(30, 12)), G.integers(0, 30, (40, 12)), 2),
}


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("metric", ["accuracy", "iou", "f1", "cross_entropy", "agreement"])
def test_the_axis_of_the_classes_is_told_by_the_inputs(name: str, metric: str) -> None:
    predict, x, axis = AXES[name]
    own = predict(x)
    labels = own.argmax(axis)
    assert labels.shape == (
        np.delete(own.shape, 1).tolist() == list(own.shape[:-1]) and own.shape[:-1]
    )  # it fits twice
    judge = built_in(metric)
    data = prepared(judge, Batches.of(x, labels, 16), predict)
    if metric == "cross_entropy":
        wanted = torch.nn.functional.cross_entropy(
            torch.from_numpy(np.moveaxis(own, axis, 1)), torch.from_numpy(labels)
        )
        assert judge(predict, data) == pytest.approx(float(wanted), rel=1e-4)
        return
    assert judge(predict, data) == 1
    if metric == "agreement":  # one decision of all that there are
        other = own.copy()
        at = (3, *(0 for _ in own.shape[1:]))
        column = tuple(slice(None) if i == axis else n for i, n in enumerate(at))
        other[column] = np.roll(other[column], 1)
        answers = {bytes(x[i].tobytes()): other[i] for i in range(len(x))}
        changed = judge(lambda z: np.stack([answers[bytes(each.tobytes())] for each in z]), data)
        assert changed == pytest.approx(1 - 1 / labels.size)


def test_what_cannot_be_told_is_refused() -> None:
    predict = net(nn.Conv1d(12, 12, 1))
    x = normal(10, 12, 12)
    with pytest.raises(MetricError, match=r"cannot tell on which axis of the output \(10, 12, 12\) the classes lie"):
        ACCURACY(predict, Batches.of(x, predict(x).argmax(1)))
    agreement = built_in("agreement")
    for undecided in (predict, net(nn.Conv1d(12, 5, 3, stride=2))):
        with pytest.raises(MetricError, match="none that can be recognized; use cosine or r2"):
            agreement(undecided, prepared(agreement, Batches.of(x), undecided))
    tokens_of_images = net(nn.Conv2d(3, 5, 4, stride=4), nn.Flatten(2), ChannelsLast())
    images = normal(10, 3, 16, 16)
    assert agreement(tokens_of_images, prepared(agreement, Batches.of(images), tokens_of_images)) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_items_of_another_length_tell(order: tuple[int, int]) -> None:
    """Twelve steps of twelve classes fit twice, nine do not."""
    predict = net(nn.Embedding(30, 12), ChannelsLast())  # a convolution over tokens: classes on axis 1
    parts = []
    for steps in (12, 9):
        x = G.integers(0, 30, (8, steps))
        parts += Batches.of(x, predict(x).argmax(1)).parts
    assert ACCURACY(predict, Batches(tuple(parts[i] for i in order))) == 1


LOGITS = normal(60, 6)
SOFT = torch.from_numpy(LOGITS).softmax(1).numpy()
FLAGS = (LOGITS > 0).astype(np.float32)


def identity(x: np.ndarray) -> np.ndarray:
    return x


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            FLAGS,
            r"labels \(60, 6\) of 0 and 1 with several or no ones per item, which are no classes; choose r2 or mse",
        ),
        (FLAGS.astype(np.int64), "0 and 1 with several or no ones"),
        (FLAGS.astype(bool), "0 and 1 with several or no ones"),
        (0 * FLAGS, "several or no ones"),
        (LOGITS + 0, r"labels \(60, 6\) of real numbers"),
        (2 * SOFT, "of real numbers"),
        (LOGITS[:, 0], r"labels \(60,\) of real numbers"),
        (FLAGS * np.nan, "NaN or Inf among the labels"),
        (FLAGS[:, 0] > 0, "labels of True and False, but the model has 6 classes"),
        ([f"{i % 6}" for i in range(60)], "the labels are words such as '0'; number the classes from 0"),
        (np.arange(60) % 6 + 1, "found the label 6, .* they seem to count from 1: subtract 1"),
        (np.full(60, 255), "found the label 255, .* to be ignored the label -100"),
        (np.arange(60) % 6 - 1, "found the label -1, .* to be ignored the label -100"),
        (FLAGS[:, :5], r"the output has the shape \(60, 6\) and the labels \(60, 5\)"),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy", "top5"])
def test_labels_that_are_no_classes_are_refused(labels: object, said: str, metric: str) -> None:
    with pytest.raises(MetricError, match=said):
        built_in(metric)(identity, Batches.of(LOGITS, labels))


CLASSES = LOGITS.argmax(1)


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        CLASSES[:, None],
        CLASSES.astype(np.float32),
        CLASSES.astype(np.uint8),
        CLASSES.tolist(),
        np.eye(6)[CLASSES],
        np.eye(6, dtype=np.int64)[CLASSES],
        np.eye(6, dtype=bool)[CLASSES],
        0.9 * np.eye(6)[CLASSES] + 0.1 / 6,
        SOFT,
        SOFT.astype(np.float16),
    ],
    ids=lambda y: f"{getattr(y, 'dtype', 'list')}{getattr(y, 'shape', '')}",
)
def test_labels_that_are_classes_in_other_forms(labels: object) -> None:
    assert ACCURACY(identity, Batches.of(LOGITS, labels, 16)) == 1


def test_cross_entropy_of_distributions_is_torchs() -> None:
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(SOFT))
    assert built_in("cross_entropy")(identity, Batches.of(LOGITS, SOFT)) == pytest.approx(float(wanted), rel=1e-5)


def test_one_hot_maps_with_their_classes_elsewhere_are_refused() -> None:
    predict = net(nn.Conv2d(3, 8, 3, padding=1))
    x = normal(10, 3, 8, 8)
    hot = np.eye(8)[predict(x).argmax(1)]
    assert ACCURACY(predict, Batches.of(x, np.moveaxis(hot, -1, 1))) == 1
    with pytest.raises(MetricError, match=r"labels .* on axis 3, where those of the output are on axis 1; permute"):
        ACCURACY(predict, Batches.of(x, hot))


MAPS = normal(12, 6, 10, 10)
MASK = MAPS.argmax(1)


@pytest.mark.parametrize("ignored", [-100, 255])
@pytest.mark.parametrize("form", ["plain", "axis of one", "axis of one at the end", "float"])
@pytest.mark.parametrize("metric", ["iou", "accuracy", "f1"])
def test_ignored_pixels_and_an_axis_of_one(ignored: int, form: str, metric: str) -> None:
    labels = MASK.copy()
    labels[:, 0] = ignored
    forms = {
        "plain": labels,
        "axis of one": labels[:, None],
        "axis of one at the end": labels[..., None],
        "float": labels.astype(np.float32),
    }
    assert built_in(metric)(identity, Batches.of(MAPS, forms[form], 5)) == 1
    with pytest.raises(MetricError, match="all are ignored"):
        built_in(metric)(identity, Batches.of(MAPS, 0 * forms[form] + ignored))


def test_void_is_left_out_only_where_it_can_be_no_class() -> None:
    maps = normal(2, 256, 4, 4)
    maps[:, 255] += 9
    assert ACCURACY(identity, Batches.of(maps, np.full((2, 4, 4), 255))) == 1
    with pytest.raises(MetricError, match="found the label 255, but the model has the classes 0 to 1"):
        built_in("iou")(identity, Batches.of(maps[:, :2], np.full((2, 4, 4), 255)))  # a mask of 0 and 255 is no void


@pytest.mark.parametrize("shape", [(200,), (200, 1), (50, 1, 2, 2), (50, 4, 1)])
@pytest.mark.parametrize("probable", [False, True])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, bool])
def test_one_score_is_two_classes(shape: tuple[int, ...], probable: bool, kind: type) -> None:
    z = normal(*shape)
    flags = (z + normal(*shape) > 0).astype(kind)
    given = 1 / (1 + np.exp(-z)) if probable else z
    two = np.stack([np.zeros(z.size, np.float32), z.ravel()], 1)
    plain = Batches.of(two, flags.ravel().astype(np.int64))
    for bare in (flags, flags.reshape(flags.shape[0], *(n for n in flags.shape[1:] if n > 1))):
        data = Batches.of(given, bare, 16)
        for metric in ("accuracy", "f1", "iou", "cross_entropy"):
            assert built_in(metric)(identity, data) == pytest.approx(built_in(metric)(identity, plain), rel=1e-4)


@pytest.mark.parametrize("shape", [(60,), (20, 5), (10, 4, 4)])
def test_decisions_without_scores_are_compared_as_they_are(shape: tuple[int, ...]) -> None:
    labels = G.integers(0, 5, shape)
    said = np.where(G.random(shape) < 0.7, labels, (labels + 1) % 5)
    data = Batches.of(said, labels, 8)
    assert ACCURACY(identity, data) == pytest.approx((said == labels).mean())
    as_scores = Batches.of(np.eye(5, dtype=np.float32)[said.ravel()], labels.ravel())
    for metric in ("f1", "iou"):
        assert built_in(metric)(identity, data) == pytest.approx(built_in(metric)(identity, as_scores))
    flags = said > 2
    assert ACCURACY(identity, Batches.of(flags, labels > 2)) == pytest.approx((flags == (labels > 2)).mean())
    with pytest.raises(MetricError, match="needs scores, but the model returns whole numbers"):
        built_in("cross_entropy")(identity, data)
    with pytest.raises(MetricError, match="whole numbers such as -1"):
        ACCURACY(identity, Batches.of(said - 1, labels))


def test_a_probability_that_a_grid_pushed_over_the_edge_is_one_still() -> None:
    p = np.array([-0.004, 0.3, 0.6, 1.004], np.float32)
    assert ACCURACY(identity, Batches.of(p, np.array([0, 0, 1, 1]))) == 1


@pytest.mark.parametrize("labels", [normal(60), 3 * (LOGITS[:, 0] > 0), 2 * (LOGITS[:, 0] > 0) - 1, 0.9 * FLAGS[:, 0]])
@pytest.mark.parametrize("metric", ["accuracy", "f1", "cross_entropy"])
def test_a_regression_is_named(labels: np.ndarray, metric: str) -> None:
    with pytest.raises(MetricError, match=r"one number per item .* choose r2, mse or mae"):
        built_in(metric)(identity, Batches.of(LOGITS[:, :1], labels))


def test_top5_of_five_classes_promises_nothing() -> None:
    with pytest.raises(MetricError, match="top5 of 5 classes is always 1; use accuracy"):
        built_in("top5")(identity, Batches.of(LOGITS[:, :5], CLASSES % 5))


@pytest.mark.parametrize("metric", ["mse", "mae", "r2", "cosine"])
def test_labels_in_another_order_of_axes_are_not_reshaped(metric: str) -> None:
    maps = normal(10, 3, 4, 5)
    judge: Metric = built_in(metric)
    with pytest.raises(MetricError, match=r"the labels have \(10, 4, 5, 3\), whose axes seem to be in another order"):
        judge(identity, Batches.of(maps, np.moveaxis(maps, 1, -1)))
    flat = Batches.of(normal(10, 1), normal(10))
    judge(identity, flat)  # an axis of one is no matter
