"""Metrics against scikit-learn and torch; drops in words; what is no number is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tersor.errors import DataError, MetricError
from tersor.loss import IGNORED
from tersor.measuring import metrics
from tersor.measuring.batches import Batches, Later
from tersor.measuring.metrics import Metric, drop, from_function, predictor, prepared, structured
from tersor.measuring.scores import BUILT_IN, built_in
from tersor.shelf import Shelf

G = np.random.default_rng(0)
LOGITS = G.standard_normal((50, 7)).astype(np.float32)
CLASSES = G.integers(0, 7, 50)
VALUES = G.random((50, 2, 8, 8)).astype(np.float32)
NEAR = (VALUES + 0.1 * G.standard_normal(VALUES.shape)).astype(np.float32)


def identity(x: np.ndarray) -> np.ndarray:
    return x


def test_class_metrics_equal_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    data, guess = Batches.of(LOGITS, CLASSES, 16), LOGITS.argmax(1)
    assert built_in("accuracy")(identity, data) == pytest.approx(sk.accuracy_score(CLASSES, guess))
    assert built_in("top5")(identity, data) == pytest.approx(sk.top_k_accuracy_score(CLASSES, LOGITS, k=5))
    assert built_in("f1")(identity, data) == pytest.approx(sk.f1_score(CLASSES, guess, average="macro"))
    assert built_in("iou")(identity, data) == pytest.approx(sk.jaccard_score(CLASSES, guess, average="macro"))


def test_cross_entropy_equals_torch_for_logits_and_probabilities() -> None:
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(CLASSES)).item()
    soft = torch.from_numpy(LOGITS).softmax(1)
    assert built_in("cross_entropy")(identity, Batches.of(LOGITS, CLASSES)) == pytest.approx(wanted, rel=1e-5)
    assert built_in("cross_entropy")(identity, Batches.of(soft, CLASSES)) == pytest.approx(wanted, rel=1e-4)
    assert built_in("perplexity")(identity, Batches.of(LOGITS, CLASSES)) == pytest.approx(math.exp(wanted), rel=1e-5)


def test_segmentations_and_sequences_and_ignored_labels() -> None:
    maps = G.standard_normal((6, 4, 5, 5)).astype(np.float32)
    wanted = maps.argmax(1)
    assert built_in("accuracy")(identity, Batches.of(maps, wanted)) == 1
    tokens = G.standard_normal((6, 9, 11)).astype(np.float32)
    wanted = tokens.argmax(2)
    wanted[0] = (wanted[0] + 1) % 11
    assert built_in("accuracy")(identity, Batches.of(tokens, wanted)) == pytest.approx(5 / 6)
    wanted[0] = IGNORED
    assert built_in("accuracy")(identity, Batches.of(tokens, wanted)) == 1


def test_errors_and_similarity() -> None:
    data = Batches.of(NEAR, VALUES, 16)
    assert built_in("mse")(identity, data) == pytest.approx(((NEAR - VALUES) ** 2).mean(), rel=1e-5)
    assert built_in("mae")(identity, data) == pytest.approx(np.abs(NEAR - VALUES).mean(), rel=1e-5)
    per_item = ((NEAR - VALUES) ** 2).reshape(50, -1).mean(1)
    assert built_in("psnr")(identity, data) == pytest.approx((-10 * np.log10(per_item)).mean(), rel=1e-5)
    assert built_in("psnr")(identity, Batches.of(VALUES, VALUES)) == 100
    residual = ((NEAR - VALUES) ** 2).sum() / ((VALUES - VALUES.mean()) ** 2).sum()
    assert built_in("r2")(identity, data) == pytest.approx(1 - residual, rel=1e-5)
    assert built_in("cosine")(identity, Batches.of(VALUES, 3 * VALUES)) == pytest.approx(1)
    assert built_in("cosine")(identity, Batches.of(VALUES, -VALUES)) == pytest.approx(-1)


def test_a_network_that_says_the_same_for_all_gains_nothing_by_ties() -> None:
    flat = np.zeros((70, 7), np.float32)
    labels = np.arange(70) % 7
    assert built_in("accuracy")(identity, Batches.of(flat, labels)) == pytest.approx(1 / 7)
    assert built_in("top5")(identity, Batches.of(flat, labels)) == pytest.approx(5 / 7)


def test_the_original_takes_the_place_of_labels_where_it_should() -> None:
    def original(x: np.ndarray) -> np.ndarray:
        return -x

    plain, labelled = Batches.of(LOGITS), Batches.of(LOGITS, CLASSES)
    agreement, cosine = built_in("agreement"), built_in("cosine")
    assert agreement(original, prepared(agreement, labelled, original)) == 1
    assert agreement(identity, prepared(agreement, plain, original)) < 0.5
    assert cosine(original, prepared(cosine, labelled, original)) == pytest.approx(1)
    assert cosine(identity, prepared(cosine, plain, original)) == pytest.approx(-1)
    own = Batches.of(VALUES, NEAR)
    assert prepared(cosine, own, original) is own
    assert prepared(built_in("accuracy"), plain, original) is plain


@pytest.mark.parametrize(
    ("names", "kind"), [(("output",), np.ndarray), (("output_0", "output_1"), tuple), (("boxes", "scores"), dict)]
)
def test_predict_returns_what_the_model_does(names: tuple[str, ...], kind: type) -> None:
    flat = tuple(LOGITS for _ in names)
    assert type(structured(flat, names)) is kind
    predict = predictor(lambda x: tuple(x for _ in names), names)
    out = predict(torch.from_numpy(LOGITS))
    assert type(out) is kind
    assert built_in("accuracy")(predict, Batches.of(LOGITS, LOGITS.argmax(1))) == 1


@pytest.mark.parametrize(
    ("before", "after", "metric", "amount", "said"),
    [
        (0.9, 0.895, BUILT_IN["accuracy"], 0.005, "accuracy 0.9 -> 0.895 (0.50 points worse, absolute)"),
        (0.9, 0.91, BUILT_IN["accuracy"], -0.01, "accuracy 0.9 -> 0.91 (1.00 points better, absolute)"),
        (20.0, 21.0, BUILT_IN["perplexity"], 0.05, "perplexity 20 -> 21 (5.00 % worse, relative)"),
        (0.02, 0.03, BUILT_IN["mse"], 0.5, "mse 0.02 -> 0.03 (50.00 % worse, relative)"),
        (1.0, 1.00002, BUILT_IN["mse"], 2e-5, "mse 1 -> 1.00002 (less than 0.01 % worse, relative)"),
        (0.0, 0.1, BUILT_IN["mse"], math.inf, "mse 0 -> 0.1 (0.1 worse; of 0 there is no percentage)"),
        (0.0, 0.0, BUILT_IN["mse"], 0.0, "mse 0 -> 0 (unchanged)"),
        (0.5, 0.4, Metric("own", lambda p, b: 0.0), 0.1, "absolute"),
        (0.5, 0.6, Metric("own", lambda p, b: 0.0, lower=True), 0.1, "absolute"),
        (30.0, 27.0, Metric("own", lambda p, b: 0.0), 0.1, "relative"),
        (-2.0, -2.2, Metric("own", lambda p, b: 0.0), 0.1, "relative"),
        ({"a": 0.5, "b": 0.9}, {"a": 0.6, "b": 0.7}, Metric("m", lambda p, b: 0.0), 0.2, "m[b] 0.9 -> 0.7"),
    ],
)
def test_drops(before, after, metric: Metric, amount: float, said: str) -> None:
    found = drop(before, after, metric)
    assert found.amount == pytest.approx(amount)
    assert said in found.text
    assert found.within(amount)
    assert math.isinf(amount) or not found.within(amount - 1e-6)


def test_every_entry_must_be_there_for_both() -> None:
    metric = Metric("m", lambda p, b: 0.0)
    with pytest.raises(MetricError, match=r"returned \['b'\] for only one"):
        drop({"a": 1.0}, {"a": 1.0, "b": 1.0}, metric)
    with pytest.raises(MetricError, match="a dict for one model and a number"):
        drop({"a": 1.0}, 1.0, metric)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "m is nan; a score must be finite"),
        (math.inf, "m is inf; a score must be finite"),
        ("0.9", "m returned str; it must return a number"),
        (None, "m returned NoneType"),
        (True, "m returned bool"),
        (np.zeros(2), "m returned ndarray"),
        ({}, "m returned an empty dict"),
        ({"a": 0.5, "b": math.nan}, r"m\['b'\] is nan"),
    ],
)
def test_what_is_no_number_is_refused(value: object, said: str) -> None:
    metric = from_function("m", lambda p, b: value)  # type: ignore[arg-type, return-value]
    with pytest.raises(MetricError, match=said):
        metric(identity, Batches.of(LOGITS))


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5)])
def test_numbers_of_all_kinds_are_numbers(value) -> None:
    assert from_function("m", lambda p, b: value)(identity, Batches.of(LOGITS)) == 0.5


def test_a_metric_that_raises_is_named() -> None:
    def broken(predict, batches) -> float:
        raise KeyError("x")

    with pytest.raises(MetricError, match=r"The metric m raised KeyError: 'x'\."):
        from_function("m", broken)(identity, Batches.of(LOGITS))


def test_directions() -> None:
    def error(predict, batches) -> float:
        return 0.0

    assert from_function("e", error).direction == "higher"
    error.direction = "lower"  # type: ignore[attr-defined]
    assert from_function("e", error).direction == "lower"
    assert from_function("e", error, lower=False).direction == "higher"
    error.direction = "down"  # type: ignore[attr-defined]
    with pytest.raises(MetricError, match="the direction 'down'"):
        from_function("e", error)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acuracy", "no metric 'acuracy'. Did you mean accuracy"),
        ("lower:accuracy", "higher is better; 'lower' was asked for"),
        ("xyz", "Known: accuracy, top5"),
    ],
)
def test_unknown_names_are_explained(name: str, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        built_in(name)


@pytest.mark.parametrize(
    ("name", "data", "error", "said"),
    [
        ("accuracy", Batches.of(LOGITS), DataError, "accuracy needs labels and the data has none"),
        ("accuracy", Batches.of(LOGITS, CLASSES + 9), MetricError, "model has the classes 0 to 6"),
        ("accuracy", Batches.of(LOGITS, CLASSES * 0 - 1), MetricError, "found the label -1"),
        ("accuracy", Batches.of(LOGITS[:, :1], CLASSES), MetricError, "gives one number per item"),
        ("accuracy", Batches.of(LOGITS, VALUES), MetricError, r"the labels \(50, 2, 8, 8\)"),
        ("accuracy", Batches.of(LOGITS, CLASSES * 0 + IGNORED), MetricError, "all are ignored"),
        ("accuracy", Batches.of(LOGITS * np.nan, CLASSES), MetricError, "output is NaN for 50 of 50 items"),
        ("accuracy", Batches.of(LOGITS, (CLASSES, CLASSES)), DataError, "needs one tensor of labels"),
        ("mse", Batches.of(LOGITS, CLASSES), MetricError, r"labels in the output's shape \(50, 7\)"),
        ("psnr", Batches.of(LOGITS, LOGITS), MetricError, r"psnr needs labels in \[0, 1\]"),
        ("r2", Batches.of(LOGITS, LOGITS * 0), MetricError, "labels that vary"),
        ("agreement", Batches.of(LOGITS[:, 0], LOGITS[:, 0]), MetricError, "agreement compares classes"),
    ],
)
def test_data_that_does_not_fit_is_explained(name: str, data: Batches, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        built_in(name)(identity, data)


def test_what_the_original_gives_lies_on_disk_where_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are the same."""
    wide = G.standard_normal((64, 2, 100, 100)).astype(np.float32)
    metric, data = built_in("cosine"), Batches.of(wide, size=8)

    def rounded(x: np.ndarray) -> np.ndarray:
        return np.round(x)

    whole = prepared(metric, data, identity)
    monkeypatch.setattr(metrics, "Shelf", lambda: Shelf(resident=0))
    filed = prepared(metric, data, identity)
    assert isinstance(filed.parts[0], Later)
    assert not isinstance(whole.parts[0], Later)
    assert metric(rounded, filed) == metric(rounded, whole)
    assert filed.digest() == whole.digest()
    assert [len(part) for part in filed.take(20).rebatch(5)] == [5, 5, 5, 5]


def test_probabilities_that_low_precision_moved_are_probabilities_still() -> None:
    """In all batches or in none: a row of scores may look like one by chance."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    rough = np.round(p * 1000) / 1000 - 1e-3 * (p < 0.05)
    exact, near = (built_in("cross_entropy")(identity, Batches.of(x.astype(np.float32), CLASSES)) for x in (p, rough))
    assert near == pytest.approx(exact, rel=0.5)
    scores = np.array([[0.3, 0.7], [4.0, -4.0]], np.float32)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.tensor([1, 0])).item()
    assert built_in("cross_entropy")(identity, Batches.of(scores, np.array([1, 0]), 1)) == pytest.approx(wanted)


@pytest.mark.parametrize("metric", ["r2", "cosine"])
def test_several_real_labels_are_not_put_aside_for_the_originals(metric: str) -> None:
    x = torch.randn(20, 3)
    for labels in ({"a": x, "b": x}, (x, x)):
        with pytest.raises(DataError, match="needs one tensor of labels; several were given"):
            prepared(built_in(metric), Batches.of(x, labels), identity)


def test_outputs_in_bfloat16_are_numbers() -> None:
    data = Batches.of(LOGITS, torch.from_numpy(LOGITS).bfloat16())
    assert built_in("mse")(lambda x: torch.from_numpy(x).bfloat16(), data) == 0  # type: ignore[arg-type, return-value]
