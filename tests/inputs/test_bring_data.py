"""Data as users bring it: every form becomes the same batches, and each refusal says what and where."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tersor.errors import DataError, DataWarning
from tersor.graph.model import Model, capture
from tersor.inputs import arrays, data
from tersor.inputs.models import bring, captured
from tersor.measuring.batches import Batches, Later


class Two(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image.sum(1) + mask


IMAGES, LABELS = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10)


@pytest.fixture(scope="module")
def one() -> Model:
    return captured(bring((nn.Conv2d(3, 2, 3), IMAGES[:2])))


@pytest.fixture(scope="module")
def two() -> Model:
    return captured(bring((Two(), (torch.randn(2, 3), torch.randn(2)))))


def opened(given: Any, model: Model, labels: bool = False) -> Batches:
    return data.batches(data.bring(given), model, labels)


def refusal(given: Any, model: Model, labels: bool = False) -> str:
    with pytest.raises(DataError) as raised:
        opened(given, model, labels)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def batched() -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, 10, 4):
        yield IMAGES[start : start + 4], LABELS[start : start + 4]


@pytest.mark.parametrize(
    "given",
    [
        batched,
        batched(),
        list(batched()),
        DataLoader(TensorDataset(IMAGES, LABELS), 4),
        [(x.numpy(), y.numpy()) for x, y in batched()],
        [(x.double(), y.tolist()) for x, y in batched()],
        [((x,), y) for x, y in batched()],
        [({"input": x}, y) for x, y in batched()],
        [{"input": x, "labels": y} for x, y in batched()],
        {"images": IMAGES.numpy(), "labels": LABELS.numpy()},
        (IMAGES, LABELS),
        Batches.of(IMAGES, LABELS, 4),
    ],
    ids=lambda g: type(g).__name__,
)
def test_every_form_gives_the_same_items(given: Any, one: Model) -> None:
    found = opened(given, one, labels=True).rebatch(10)
    (batch,) = found
    assert torch.allclose(batch.inputs[0], IMAGES)
    assert torch.equal(torch.as_tensor(batch.labels), LABELS)


def test_inputs_without_labels(one: Model) -> None:
    for given in (IMAGES, [IMAGES[:4], IMAGES[4:]], [(IMAGES,)], [[IMAGES]], [{"input": IMAGES}]):
        found = opened(given, one)
        assert len(found) == 10
        assert all(b.labels is None for b in found)


def test_several_inputs(two: Model) -> None:
    image, mask, labels = torch.randn(6, 3), torch.randn(6), torch.arange(6)
    for given in (
        [(image, mask)],
        [((image, mask), labels)],
        [(image, mask, labels)],
        [{"mask": mask, "image": image}],
        {"mask": mask.numpy(), "image": image.numpy(), "y": labels.numpy()},
    ):
        (batch,) = opened(given, two)
        assert torch.equal(batch.inputs[0], image)
        assert torch.equal(batch.inputs[1], mask)
    assert "the model takes image, mask" in refusal([{"image": image, "other": mask}], two)
    assert "has 1 input; the model takes 2: image, mask" in refusal([image], two)


def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 12))


VALUES = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [tuple, list], ids=["tuple", "list"])
@pytest.mark.parametrize("as_arrays", [False, True], ids=["tensors", "arrays"])
def test_a_pair_of_equal_shapes_is_not_guessed(kind: type, as_arrays: bool) -> None:
    pair = [VALUES, 50 * VALUES]
    given = kind(x.numpy() for x in pair) if as_arrays else kind(pair)
    model = captured(bring((autoencoder(), VALUES[:2])))
    message = refusal(given, model)
    assert "may be inputs and labels of 8 items, or 2 batches, 16 items in all" in message
    assert "return [(inputs, labels)]" in message
    (batch,) = opened([(VALUES, 50 * VALUES)], model)
    assert torch.equal(batch.labels, 50 * VALUES)
    assert len(opened([(VALUES,), (50 * VALUES,)], model)) == 16
    uneven = opened(kind([VALUES, VALUES[:3]]), model)  # no labels of eight items
    assert (len(uneven), [b.labels for b in uneven]) == (11, [None, None])


def test_a_list_of_inputs_beside_a_list_of_labels(one: Model) -> None:
    for parts in (3, 2):
        xs, ys = list(IMAGES.tensor_split(parts)), list(LABELS.tensor_split(parts))
        found = opened((xs, ys), one, labels=True)
        assert torch.equal(torch.cat([b.labels for b in found]), LABELS)
    batches = opened(([IMAGES, LABELS], [IMAGES, LABELS]), one, labels=True)  # as `tuple(loader)` gives them
    assert (len(batches), torch.equal(batches.parts[1].labels, LABELS)) == (20, True)
    model = captured(bring((autoencoder(), VALUES[:2])))
    message = refusal(([VALUES[:4], VALUES[4:]], [VALUES[:4], VALUES[4:]]), model)
    assert "inputs and labels of 2 batches, or 2 batches of inputs and labels" in message
    source, brought = (
        data.bring(([IMAGES[:4], IMAGES[4:7], IMAGES[7:]], list(LABELS.split(4)))),
        bring(nn.Conv2d(3, 2, 3)),
    )
    assert captured(brought, data.example(source, brought)).example[0].shape == (2, 3, 4, 4)


def test_an_iterator_over_a_pair_is_read_as_the_pair(one: Model) -> None:
    (batch,) = opened(lambda: map(torch.as_tensor, (IMAGES.numpy(), LABELS.numpy())), one, labels=True)
    assert torch.equal(batch.labels, LABELS)
    model = captured(bring((autoencoder(), VALUES[:2])))
    assert "return [(inputs, labels)]" in refusal(lambda: (x.float() for x in (VALUES, 2 * VALUES)), model)


def test_a_pair_of_equal_shapes_is_told_by_what_the_model_takes_and_gives() -> None:
    torch.manual_seed(0)
    classes = captured(bring((nn.Linear(12, 4), VALUES[:2])))
    halves = opened(VALUES.split(4), classes)  # a tuple of two batches: labels would be (8,), (8, 1) or (8, 4)
    assert (len(halves), [b.labels for b in halves]) == (8, [None, None])

    class Distance(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return (left - right).square().sum(1)

    pairs = captured(bring((Distance(), (VALUES[:2], VALUES[2:4]))))
    (batch,) = opened((VALUES, 2 * VALUES), pairs)
    assert torch.equal(batch.inputs[1], 2 * VALUES)
    (batch,) = opened((VALUES, 2 * VALUES, torch.arange(8)), pairs)
    assert torch.equal(batch.labels, torch.arange(8))
    (batch,) = opened(((VALUES, 2 * VALUES), torch.arange(8)), pairs)
    assert torch.equal(batch.labels, torch.arange(8))
    two = opened([(VALUES, VALUES + 1), (VALUES, VALUES + 2)], pairs)
    assert (len(two), [b.labels for b in two]) == (16, [None, None])


def test_a_list_of_inputs_and_labels_is_read_as_a_tuple_is(one: Model) -> None:
    for given in ([IMAGES, LABELS], [IMAGES.numpy(), LABELS.numpy()], ({"x": IMAGES}, LABELS), [(IMAGES,), LABELS]):
        (batch,) = opened(given, one, labels=True)
        assert torch.equal(batch.labels, LABELS)
    nets = data.bring((VALUES, 2 * VALUES, torch.arange(8))), bring(nn.Bilinear(12, 12, 3))
    model = captured(nets[1], data.example(*nets))
    assert len(data.batches(nets[0], model, labels=True)) == 8


def test_next_tokens_may_be_labels_or_a_batch() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (6, 5))
    model = captured(bring((nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)), tokens[:2])))
    assert "return [(inputs, labels)]" in refusal((tokens, tokens.roll(-1, 1)), model)
    assert "return [(inputs, labels)]" in refusal([tokens.numpy(), tokens.numpy()], model)


def test_other_orders_and_weights_are_refused_in_words(one: Model, tmp_path: Path) -> None:
    assert "the labels seem to come first: give (inputs, labels)" in refusal([(LABELS, IMAGES)], one)
    assert "the labels seem to come first" in refusal((LABELS.numpy(), IMAGES.numpy()), one)
    message = refusal([(IMAGES, LABELS, torch.ones(10))], one)
    assert "has 3 inputs; the model takes 1: input; of (inputs, labels, weights) give (inputs, labels)" in message
    assert "has both 'y' and 'target'" in refusal({"x": IMAGES, "y": LABELS, "target": LABELS}, one)
    assert "give DataLoader(dataset, batch_size=64)" in refusal(TensorDataset(IMAGES, LABELS), one)
    np.savez(tmp_path / "positional.npz", IMAGES.numpy(), LABELS.numpy())
    message = refusal(str(tmp_path / "positional.npz"), one)
    assert "names arr_0, arr_1; the model takes input: use these names (or x), and y for labels" in message
    assert "is an array of [('a', '<f4')]" in refusal(np.zeros(4, [("a", "<f4")]), one)
    hidden = np.ma.masked_less(IMAGES.numpy(), 0)
    assert "is a masked array" in refusal([hidden], one)


def test_an_input_may_be_called_as_labels_are() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    given = {"x": VALUES, "y": 2 * VALUES, "labels": torch.arange(8)}
    source, brought = data.bring(given), bring(Sum())
    (batch,) = data.batches(source, captured(brought, data.example(source, brought)), labels=True)
    assert torch.equal(batch.inputs[1], 2 * VALUES)
    assert torch.equal(batch.labels, torch.arange(8))


@pytest.mark.parametrize("kind", [">f4", "<f8", "longdouble", "f2"])
def test_numbers_of_other_machines_are_numbers(kind: str, one: Model) -> None:
    images = IMAGES.numpy().astype(kind)
    (batch,) = opened([(images, LABELS.numpy().astype(">u2"))], one, labels=True)
    assert torch.allclose(batch.inputs[0], IMAGES, atol=2e-3)
    assert torch.equal(batch.labels, LABELS)


def test_nested_structures_follow_the_example() -> None:
    class Nested(nn.Module):
        def forward(self, batch: dict[str, Tensor], *, scale: Tensor) -> Tensor:
            return batch["a"] - batch["b"] * scale

    a, b, scale = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 1)
    model = captured(bring(Nested()), (({"a": a, "b": b},), {"scale": scale}))
    (batch,) = opened([(({"a": a, "b": b}, scale), torch.arange(4))], model)
    assert [t.shape for t in batch.inputs] == [t.shape for t in model.example]

    class Single(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["a"] - batch["b"]

    model = captured(bring(Single()), (({"a": a, "b": b},), {}))
    (batch,) = opened([{"b": b, "a": a}], model)
    assert torch.equal(model.run(*batch.inputs)[0], a - b)


def test_a_file_and_its_mistakes(tmp_path: Path, one: Model) -> None:
    path = tmp_path / "data.py"
    path.write_text(
        "import numpy as np\n"
        "def good():\n    for i in range(3):\n        yield np.full((2, 3, 4, 4), i), np.zeros(2, int)\n"
        "def late():\n    yield np.ones((2, 3, 4, 4))\n    raise RuntimeError('disk on fire')\n"
        "def empty():\n    return []\n"
        "def number():\n    return 3\n"
    )
    assert "is int64; the model's example is float32" in refusal(f"{path}:good", one)
    message = refusal(f"{path}:late", one)
    assert "RuntimeError: disk on fire" in message
    assert "line 7 of" in message
    assert "gave no batches" in refusal(f"{path}:empty", one)
    assert "gave a int; expected an iterable of batches" in refusal(f"{path}:number", one)
    assert "no function 'gone'; it has: empty, good, late, number" in refusal(f"{path}:gone", one)


def test_npz(tmp_path: Path, one: Model, two: Model) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=IMAGES.numpy(), y=LABELS.numpy())
    found = opened(str(path), one, labels=True)
    assert len(found) == 10
    assert found.digest() == opened(path, one).digest()
    np.savez(path, image=np.random.rand(5, 3), mask=np.random.rand(5), labels=np.arange(5))
    assert len(opened(str(path), two, labels=True)) == 5
    np.savez(path, image=np.random.rand(5, 3), msk=np.random.rand(5))
    assert "names image, msk; the model takes image, mask" in refusal(str(path), two)
    np.savez(path, x=np.array([object()], dtype=object))
    assert "holds Python objects, which could run code" in refusal(str(path), one)
    assert "There is no file" in refusal(str(tmp_path / "gone.npz"), one)
    path.write_text("hello")
    assert "cannot be read" in refusal(str(path), one)


def test_an_npz_that_declares_more_than_it_holds(tmp_path: Path, one: Model) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    assert f"declares {(1 << 42) + len(header.getvalue())} bytes and holds" in refusal(str(tmp_path / "a.npz"), one)


def test_nan_inf_and_huge_values_say_where(one: Model) -> None:
    for value, said in ((float("nan"), "1 NaN or Inf"), (float("inf"), "1 NaN or Inf"), (1e30, "1 values above 1e+18")):
        bad = IMAGES.clone()
        bad[6, 1, 2, 3] = value
        message = refusal([bad[:4], bad[4:]], one)
        assert said in message
        assert "batch 1, item 2" in message
        assert "the first in item 6" in refusal(bad, one)


def test_constant_and_empty_data(one: Model, two: Model) -> None:
    assert "All 10 items of list hold nothing but 0; give real data" in refusal([torch.zeros(10, 3, 4, 4)], one)
    assert "hold nothing but 0.5" in refusal([torch.full((10, 3, 4, 4), 0.5)], one)
    assert "holds an item" in refusal([torch.zeros(0, 3, 4, 4)], one)
    assert "gave no batches" in refusal([], one)
    assert len(opened([(torch.randn(4, 3), torch.zeros(4))], two)) == 4  # one input of several may be constant


def test_shapes_and_types_that_do_not_fit(one: Model) -> None:
    message = refusal([IMAGES, IMAGES.permute(0, 2, 3, 1)], one)
    assert "batch 1 of list, input 'input' has the shape (10, 4, 4, 3)" in message
    assert "the model's example has (batch, 3, 4, 4)" in message
    assert "another order (permute them)" in message
    assert "the batch axis is missing" in refusal([IMAGES[0], IMAGES[1]], one)
    assert "has the shape (10, 3, 5, 5)" in refusal([torch.randn(10, 3, 5, 5)], one)
    message = refusal([(IMAGES * 10).to(torch.uint8)], one)
    assert "is uint8; the model's example is float32; scale it as in training" in message
    assert "is a str; expected a tensor" in refusal([["a"]], one)


def test_missing_labels(one: Model) -> None:
    assert "Batch 0 of list has no labels" in refusal([IMAGES], one, labels=True)
    assert "Batch 1 of list has no labels" in refusal([(IMAGES, LABELS), (IMAGES,)], one)
    assert "give one label per item" in refusal([(IMAGES, LABELS[:4])], one)


def test_the_first_batch_as_the_example() -> None:
    net = nn.Conv2d(3, 2, 3)
    for given in (batched, [{"input": IMAGES}], {"x": IMAGES.numpy(), "y": LABELS.numpy()}, IMAGES, Batches.of(IMAGES)):
        source, brought = data.bring(given), bring(net)
        model = captured(brought, data.example(source, brought))
        assert model.example[0].shape == (2, 3, 4, 4)
        assert len(data.batches(source, model)) == 10
    source, brought = data.bring([(torch.randn(1, 3), torch.randn(1))]), bring(Two())
    assert [t.shape[0] for t in captured(brought, data.example(source, brought)).example] == [2, 2]


def test_buffers_that_a_loader_reuses_are_copied(one: Model) -> None:
    def reusing() -> Iterator[np.ndarray]:
        buffer = np.empty((1, 3, 4, 4), np.float32)
        for i in range(3):
            buffer[:] = i
            yield buffer

    assert [float(b.inputs[0].mean()) for b in opened(reusing, one)] == [0, 1, 2]


def test_split_is_seeded_disjoint_and_large_enough() -> None:
    whole = Batches.of(torch.arange(2000.0).reshape(-1, 1))
    first, second = data.split(whole, seed=3)
    assert (len(first), len(second)) == (1600, 400)
    assert data.split(whole, seed=3)[1].digest() == second.digest()
    assert data.split(whole, seed=4)[1].digest() != second.digest()
    items = torch.cat([b.inputs[0] for part in (first, second) for b in part]).flatten()
    assert sorted(items.tolist()) == list(range(2000))
    assert [len(p) for p in data.split(whole.take(500))] == [300, 200]
    assert [len(p) for p in data.split(whole.take(100))] == [50, 50]
    with pytest.raises(DataError, match="separate evaluation data"):
        data.split(whole.take(1))


def test_few_items_far_larger_than_the_others_are_named(one: Model) -> None:
    images = torch.randn(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[[17, 40]] *= 100
    with pytest.warns(DataWarning, match=r"2 of 60 items of list hold .* more than 30 times .* the first is item 17"):
        found = opened(list(images.split(20)), one)
    usual = data.without_outliers(found)
    assert len(usual) == 58
    assert float(torch.cat([b.inputs[0] for b in usual]).abs().max()) < 10
    images[40] /= 100
    images[1::2] *= 100  # half of them: such is the data
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found = opened(list(images.split(20)), one)
    assert data.without_outliers(found) is found


def test_what_is_too_large_for_memory_lies_on_disk_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that reuses its buffer, read with almost nothing in memory, gives what it gives with all of it there."""
    net = nn.Linear(300, 4)
    model = capture(net, (torch.randn(2, 300),))

    def loader() -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        buffer, drawn = torch.empty(90, 300), torch.Generator().manual_seed(0)
        for i in range(6):
            buffer.normal_(generator=drawn)
            yield buffer, np.arange(90) + i

    usual = data.batches(data.bring(loader), model)
    monkeypatch.setattr(data, "RESIDENT", 0)
    source = data.bring(loader)
    assert source.on_disk
    streamed = data.batches(source, model)
    assert all(isinstance(batch, Later) for batch in streamed)
    for one, other in zip((usual, *usual.split(0.3)), (streamed, *streamed.split(0.3)), strict=True):
        assert one.digest() == other.digest()
        assert len(one) == len(other)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as too large to be in memory at once."""
    monkeypatch.setattr(arrays, "LARGE", 0)
    monkeypatch.setattr(data, "TOGETHER", 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_npz_is_read_in_parts(tmp_path: Path, one: Model, large: None, save: Any) -> None:
    path = tmp_path / "x.npz"
    save(path, x=IMAGES.numpy().astype(">f4"), y=LABELS.numpy())
    found = opened(str(path), one, labels=True)
    assert [len(part) for part in found.parts] == [4, 4, 2]
    assert torch.equal(torch.cat([b.inputs[0] for b in found]), IMAGES)
    assert torch.equal(torch.cat([torch.as_tensor(b.labels) for b in found]), LABELS)


@pytest.mark.parametrize(
    "made", [{"x": IMAGES.numpy(), "y": LABELS.numpy()[:9]}, {"x": np.asfortranarray(IMAGES.numpy())}]
)
def test_what_cannot_be_read_in_parts_is_read_whole(tmp_path: Path, large: None, made: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "x.npz", **made)  # type: ignore[arg-type]
    assert data.bring(str(tmp_path / "x.npz")).whole


def test_damage_in_a_large_npz_is_seen(tmp_path: Path, large: None) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=IMAGES.numpy(), y=LABELS.numpy())
    content = bytearray(path.read_bytes())
    content[900] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz' cannot be read \(Bad CRC-32"):
        data.bring(str(path))
    with pytest.raises(DataError, match="There is no file"):
        data.bring(str(tmp_path / "none.npz"))


def test_whole_numbers_that_the_models_type_cannot_hold_are_refused() -> None:
    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() / 255

    model = captured(bring((Pixels(), torch.randint(0, 255, (2, 3), dtype=torch.uint8))))
    fits = opened(list(torch.randint(0, 256, (12, 3)).split(4)), model)
    assert {b.inputs[0].dtype for b in fits} == {torch.uint8}
    said = refusal(torch.tensor([[1, 2, 3], [4, 300, 6]]), model)
    assert "holds 300, which the type of the model's example, uint8, cannot hold" in said


def test_the_first_batch_with_items_is_the_example() -> None:
    found = data.bring([(IMAGES[:0], LABELS[:0]), (IMAGES[:4], LABELS[:4])])
    (example,), _ = data.example(found, bring(nn.Conv2d(3, 2, 3)))
    assert torch.equal(example, IMAGES[:2])
