"""`tersor.distil`: a student learns what its teacher knows, from the teacher alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stripes
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError


class Narrow(nn.Module):
    """Half as wide as its teacher, and without the residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_a_student_that_knew_nothing_learns_without_labels(tmp_path: Path):
    torch.manual_seed(0)
    student, out = Narrow().eval(), tmp_path / "student.pt2"
    data = [x for x, _ in stripes.batches()]
    held = [stripes.images(400, 7)]
    how = tersor.Recovery.of("10epochs")
    found = tersor.distil(
        student,
        [(x, torch.zeros(len(x), dtype=torch.long)) for x in data],
        teacher=stripes.trained(),
        recover=how,
        eval_data=held,
        threads=1,
        out=out,
    )
    assert found.untrained < 0.5
    assert found.after > 0.85
    assert found.macs[1] < 0.3 * found.macs[0]
    x = held[0][0]
    again = torch.export.load(out).module(check_guards=False)  # without Tersor
    torch.testing.assert_close(again(x), found.module(x))
    assert json.loads(json.dumps(found.to_json()))["trained"]["steps"] == found.trained.steps
    second = tersor.distil(
        student,
        [(x, torch.zeros(len(x), dtype=torch.long)) for x in data],
        teacher=stripes.trained(),
        recover=how,
        eval_data=held,
        threads=1,
    )  # out of the cache
    assert second.model.digest() == found.model.digest()


def test_a_share_of_the_teacher_begins_with_what_it_knows():
    data, held = stripes.batches(), [stripes.images(400, 7)]
    how = tersor.Recovery.of("2epochs")
    given = {"teacher": stripes.trained(), "recover": how, "eval_data": held, "threads": 1}
    found = tersor.distil(None, data, width="50%", **given)
    assert found.macs[1] < 0.55 * found.macs[0]
    assert found.untrained > 0.5  # four classes
    assert found.after >= found.untrained
    shapes = {tuple(p.shape) for p in found.module.parameters() if p.ndim == 4}
    assert shapes == {(8, 1, 3, 3), (8, 8, 3, 3)}


def test_early_layers_of_the_teacher_are_where_a_student_begins():
    class Shallow(stripes.Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)))

    torch.manual_seed(0)
    how = tersor.Recovery.of("1epochs", optimiser="sgd", rate=1e-6, batch=64)
    found = tersor.distil(
        Shallow().eval(), stripes.batches(), teacher=stripes.trained(), reuse=True, recover=how, threads=1
    )
    kernel = found.model.tensor("stem.0.weight")
    module = stripes.trained()
    scale = module.stem[1].weight / (module.stem[1].running_var + module.stem[1].eps).sqrt()
    torch.testing.assert_close(kernel, module.stem[0].weight * scale.reshape(-1, 1, 1, 1), rtol=1e-2, atol=1e-3)
    with pytest.raises(InputError, match="the student's first layer is not like its teacher's"):
        tersor.distil(Narrow().eval(), stripes.batches(), teacher=stripes.trained(), reuse=True, threads=1)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"student": None}, "A student is a model of its own or a smaller copy of its teacher; name a student"),
        ({"student": Narrow(), "width": "50%"}, "name a student, or give width or depth, but not both"),
        ({"student": None, "width": "50%", "reuse": True}, "starts from the teacher's weights anyway; leave out reuse"),
        ({"student": None, "width": "200%"}, "The share '200%' lies outside 0% to 100%"),
        ({"student": None, "depth": "60%"}, "The teacher has 1 residual branch, and keeping 60 % removes none"),
    ],
)
def test_a_student_that_cannot_be_meant_is_refused(wish, said):
    with pytest.raises(InputError) as caught:
        tersor.distil(wish.pop("student"), stripes.batches(), teacher=stripes.trained(), threads=1, **wish)
    assert said in str(caught.value)


@pytest.mark.realdata
@pytest.mark.slow
def test_a_share_of_resnet20_begins_with_what_all_of_it_knows(loaders):
    images, labels = (each[:1280] for each in loaders.cifar10("train"))
    x, y = loaders.cifar_norm(images), torch.from_numpy(labels)
    found = tersor.distil(
        None,
        list(zip(x[:768].split(256), y[:768].split(256), strict=True)),
        teacher=loaders.resnet_cifar(20),
        width="75%",
        depth="80%",
        recover="2epochs",
        eval_data=[(x[768:], y[768:])],
        threads=1,
    )
    assert found.macs[1] < 0.6 * found.macs[0]
    assert found.untrained > 0.7
    assert found.after >= found.untrained


def test_inner_activations_teach_through_a_learned_matrix():
    torch.manual_seed(0)
    how = tersor.Recovery.of(
        "4epochs", loss="kl + feature(node='relu', teacher='relu')", optimiser="sgd", rate=0.05, batch=64
    )
    found = tersor.distil(Narrow().eval(), stripes.batches(), teacher=stripes.trained(), recover=how, threads=1)
    assert found.trained.losses[-1][1] < 0.95 * found.trained.losses[0][1]


def test_a_student_of_another_shape_or_without_time_is_refused():
    with pytest.raises(
        InputError, match=r"gives output \(batch, 7\) float32 where the teacher gives output \(batch, 4\)"
    ):
        tersor.distil(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), stripes.batches(), teacher=stripes.trained(), threads=1
        )
    with pytest.raises(InputError, match="recover is none, but a student has to be trained"):
        tersor.distil(Narrow(), stripes.batches(), teacher=stripes.trained(), recover="none")


class Masked(nn.Module):
    """Two inputs of unlike kinds."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, 8))

    def forward(self, seen: Tensor, allowed: Tensor) -> Tensor:
        return self.body(seen).masked_fill(~allowed, -1e4)


class Turned(Masked):
    def forward(self, allowed: Tensor, seen: Tensor) -> Tensor:
        return super().forward(seen, allowed)


SEEN, ALLOWED = torch.randn(64, 12, generator=torch.Generator().manual_seed(1)), torch.ones(64, 8, dtype=torch.bool)


@pytest.mark.parametrize("example", [True, False], ids=["with an example", "without"])
def test_a_student_that_takes_its_inputs_in_another_order_is_refused(example: bool) -> None:
    teacher = Masked(16).eval(), (SEEN[:2], ALLOWED[:2])
    student = Turned(4).eval()
    given = (student, (ALLOWED[:2], SEEN[:2])) if example else student
    with pytest.raises(
        InputError, match=r"The student takes allowed.*, seen.* and its teacher seen.*, allowed.* order"
    ):
        tersor.distil(given, [(SEEN, ALLOWED)], teacher=teacher, metric="cosine", threads=1)


class Pair(nn.Module):
    """Inputs that only their names tell apart, and outputs likewise."""

    def __init__(self, names: tuple[str, str] = ("near", "far")) -> None:
        super().__init__()
        self.near, self.far, self.names = nn.Linear(12, 12), nn.Linear(12, 12), names

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, (self.near(a), self.far(b)), strict=True))


class Crossed(Pair):
    def forward(self, b: Tensor, a: Tensor) -> dict[str, Tensor]:
        return super().forward(a, b)


class Decided(Pair):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {name: out > 0 for name, out in super().forward(a, b).items()}


class One(Pair):
    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"near": super().forward(a, b)["near"]}


@pytest.mark.parametrize(
    ("student", "said"),
    [
        (Crossed(), r"The student takes b, a and its teacher a, b"),
        (Pair(("far", "near")), r"The student gives far .* where the teacher gives near"),
        (
            Decided(),
            r"The student gives near \(batch, 12\) bool, .* where the teacher gives near \(batch, 12\) float32",
        ),
        (
            One(),
            r"The student gives near \(batch, 12\) float32 where the teacher gives near .*, far \(batch, 12\) float32",
        ),
    ],
    ids=["inputs crossed", "outputs crossed", "flags", "one output"],
)
def test_a_student_whose_names_or_kinds_differ_is_refused(student: nn.Module, said: str) -> None:
    teacher = Pair().eval(), (SEEN[:2], SEEN[2:4])
    with pytest.raises(InputError, match=said):
        tersor.distil(student.eval(), [(SEEN, SEEN.flip(0))], teacher=teacher, metric="cosine", threads=1)


@pytest.mark.parametrize("taught", [True, False])
def test_a_student_that_gives_probabilities_for_scores_is_refused(taught: bool) -> None:
    plain, soft = nn.Linear(12, 4), nn.Sequential(nn.Linear(12, 4), nn.Softmax(1))
    student, teacher = (plain, soft) if taught else (soft, plain)
    said = (
        "The student gives scores in 'output' where its teacher gives probabilities"
        if taught
        else "gives probabilities"
    )
    with pytest.raises(InputError, match=said):
        tersor.distil(student, [SEEN], teacher=(teacher, SEEN[:2]), metric="cosine", threads=1)


def test_a_student_that_cannot_take_all_that_its_teacher_does_is_refused() -> None:
    ids = torch.arange(200).reshape(50, 4) % 20
    student, teacher = (nn.Sequential(nn.Embedding(rows, 3), nn.Linear(3, 5)) for rows in (10, 20))
    with pytest.raises(InputError, match=r"The student cannot take its teacher's example input .*index out of range"):
        tersor.distil((student, ids[:2]), [ids], teacher=(teacher, ids[3:5]), metric="cosine", threads=1)
