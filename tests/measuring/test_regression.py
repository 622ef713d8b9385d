"""Flips, per class, intervals, examples and pictures."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from tersor.errors import DataError
from tersor.measuring.batches import Batches
from tersor.measuring.metrics import prepared
from tersor.measuring.pictures import picture, png
from tersor.measuring.regression import compare, paired_difference
from tersor.measuring.scores import built_in

G = np.random.default_rng(0)
LOGITS = 3 * G.standard_normal((200, 5)).astype(np.float32)
LABELS = np.where(G.random(200) < 0.8, LOGITS.argmax(1), G.integers(0, 5, 200))
CHANGED = LOGITS + 1.5 * G.standard_normal(LOGITS.shape).astype(np.float32)


def before(x: np.ndarray) -> np.ndarray:
    return LOGITS[x[:, 0].astype(int)]


def after(x: np.ndarray) -> np.ndarray:
    return CHANGED[x[:, 0].astype(int)]


INDEX = np.arange(200, dtype=np.float32)[:, None]


def test_flips_are_counted_both_ways() -> None:
    found = compare(before, after, Batches.of(INDEX, LABELS, 64))
    was, now = LOGITS.argmax(1), CHANGED.argmax(1)
    assert found.items == 200
    assert found.changed == (was != now).sum() > 0
    assert found.agreement == pytest.approx((was == now).mean())
    assert found.gained == ((was != LABELS) & (now == LABELS)).sum()
    assert found.lost == ((was == LABELS) & (now != LABELS)).sum()
    assert found.difference is not None
    assert found.difference.value == pytest.approx((now == LABELS).mean() - (was == LABELS).mean())
    assert sum(c.items for c in found.classes) == 200
    assert sum(c.items * c.after for c in found.classes) == pytest.approx((now == LABELS).sum())
    assert len(found.worst) == 8
    assert all(was[e.item] == LABELS[e.item] != now[e.item] for e in found.worst)
    assert [e.loss for e in found.worst] == sorted((e.loss for e in found.worst), reverse=True)
    assert found.worst[0].numbers == (float(found.worst[0].item),)


def test_without_labels_the_original_decides() -> None:
    found = compare(before, after, Batches.of(INDEX))
    assert found.gained == 0
    assert found.lost == found.changed
    assert found.classes == ()
    assert found.worst[0].label is None


def test_flips_against_the_original_where_its_outputs_are_the_labels() -> None:
    agreement = built_in("agreement")
    found = compare(before, after, prepared(agreement, Batches.of(INDEX, LABELS), before))
    plain = compare(before, after, Batches.of(INDEX))
    assert (found.lost, found.gained, found.agreement) == (plain.lost, 0, plain.agreement)


def test_nothing_changed_is_nothing_found() -> None:
    found = compare(before, before, Batches.of(INDEX, LABELS))
    assert (found.changed, found.gained, found.lost, found.error, found.worst) == (0, 0, 0, 0.0, ())
    assert found.divergence == pytest.approx(0, abs=1e-12)


def test_other_outputs_are_judged_by_error() -> None:
    def maps(x: np.ndarray) -> np.ndarray:
        return np.ones((len(x), 2, 3, 3)) * x[:, :, None, None]

    found = compare(maps, lambda x: 1.1 * maps(x), Batches.of(INDEX, INDEX))
    assert found.error == pytest.approx(0.1)
    assert found.agreement is None
    assert found.worst[0].item == 199
    with pytest.raises(DataError, match="compressed model"):
        compare(maps, before, Batches.of(INDEX))


def test_items_of_different_lengths_are_compared() -> None:
    data = Batches((*Batches.of(np.ones((2, 3), np.float32)), *Batches.of(np.ones((2, 4), np.float32))))
    assert compare(lambda x: x, lambda x: x * 2, data).items == 4


def test_the_paired_interval_covers_the_truth() -> None:
    """Of 200 samples with a true difference of -0.02, about 95 % of the intervals must hold it."""
    g, inside = np.random.default_rng(1), 0
    for seed in range(200):
        u = g.random(1000)
        interval = paired_difference(u < 0.90, u < 0.88, seed, draws=2000)
        inside += interval.low <= -0.02 <= interval.high
    assert 180 <= inside <= 200


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (28, 28), (32, 40, 3)])
def test_images_become_png_files(shape: tuple[int, ...]) -> None:
    uri = picture(G.standard_normal(shape).astype(np.float32))
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    image = pytest.importorskip("PIL.Image")
    import io

    opened = image.open(io.BytesIO(data))
    assert max(opened.size) in shape


def test_pixels_are_written_as_they_are() -> None:
    pixels = G.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    data = png(pixels)
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    lines = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + length]), np.uint8).reshape(5, 13)
    assert (lines[:, 1:].reshape(5, 4, 3) == pixels).all()
    assert (lines[:, 0] == 0).all()


def test_a_large_image_is_made_small() -> None:
    assert len(picture(G.random((3, 900, 700)))) < 60_000


@pytest.mark.parametrize("shape", [(10,), (5, 10, 10), (1, 49, 10), (4, 4), (1, 3, 32, 32)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert picture(np.ones(shape, np.float32)) == ""
