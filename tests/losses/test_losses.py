"""Every loss: its gradient by finite differences, its closed form, and the words that make it."""

from __future__ import annotations

import math
import pkgutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tersor import losses
from tersor.errors import InputError
from tersor.loss import Loss, Seen, WeightedSum
from tersor.losses import loss_called
from tersor.losses.attention import Attention
from tersor.losses.cross_entropy import CrossEntropy
from tersor.losses.dist import DIST
from tersor.losses.dkd import DKD
from tersor.losses.feature import Feature
from tersor.losses.hard_distillation import HardDistillation
from tersor.losses.kl import KL
from tersor.losses.logit_mse import LogitMSE
from tersor.losses.relational import Relational
from tersor.losses.streams import Streams

LOSSES: tuple[Loss, ...] = (
    *(CrossEntropy(), CrossEntropy(smoothing=0.1), HardDistillation(), HardDistillation(smoothing=0.2)),
    *(
        KL(),
        KL(1.0),
        KL(2.0, standardise=True),
        LogitMSE(),
        LogitMSE(relative=True),
        DKD(),
        DKD(2.0, 0.5, 3.0),
        DIST(),
        DIST(1.0, 2.0, 0.5),
    ),
    *(
        Streams(at=("h", "narrow")),
        Feature("h"),
        Feature("narrow", "h"),
        Attention("h"),
        Attention("small", "h", power=4.0),
    ),
    *(Relational(), Relational(angle=0.0, node="h"), Relational(distance=0.0, node="narrow", teacher="h")),
    WeightedSum(((0.9, KL()), (0.1, CrossEntropy()), (2.0, Feature("narrow", "h")))),
)
SHAPES = {"h": (6, 4, 3, 3), "narrow": (6, 2, 3, 3), "small": (6, 5, 2, 2)}


def seen(seed: int) -> Seen:
    g = torch.Generator().manual_seed(seed)
    inner = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in SHAPES.items()}
    return Seen({"output": torch.randn(6, 5, generator=g, dtype=torch.float64)}, inner)


LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_are_those_of_finite_differences(loss: Loss):
    student, teacher = seen(0), seen(1)
    learned = loss.learned(student, teacher)
    if learned is not None:
        learned.double()
    names = ["", *SHAPES]

    def value(*tensors: Tensor) -> Tensor:
        return loss(Seen({"output": tensors[0]}, dict(zip(SHAPES, tensors[1:], strict=True))), teacher, LABELS, learned)

    given = [student.outputs["output"] if not name else student.inner[name] for name in names]
    given = [x.clone().requires_grad_() for x in given]
    assert value(*given).shape == ()
    assert torch.autograd.gradcheck(value, given, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_probabilities_are_heard_as_the_scores_they_were_made_of():
    student, teacher = seen(0), seen(1)
    soft = [Seen({"output": each.outputs["output"].softmax(-1)}) for each in (student, teacher)]
    torch.testing.assert_close(KL(probabilities=True)(*soft, None), KL()(student, teacher, None))


def test_a_relative_error_has_no_unit():
    student, teacher = seen(0), seen(1)
    tenfold = [Seen({"output": 10 * each.outputs["output"]}) for each in (student, teacher)]
    loss = LogitMSE(relative=True)
    torch.testing.assert_close(loss(*tenfold, None), loss(student, teacher, None))


def test_streams_that_are_optional_and_not_there_cost_nothing():
    loss = Streams(optional=True).placed(tuple)
    assert float(loss(seen(0), seen(1), None)) == 0.0
    assert not loss.steady
    assert Streams().placed(lambda: (("h", "h"),)).steady
    with pytest.raises(InputError, match="student and teacher have none of the same shape in common"):
        Streams().placed(tuple)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_batch_twice_over_costs_as_much_and_settings_are_readable(loss: Loss):
    if isinstance(loss, Relational | DIST):
        pytest.skip("compares items with each other")
    student, teacher = seen(0), seen(1)
    learned = loss.learned(student, teacher)
    if learned is not None:
        learned.double()

    def twice(s: Seen) -> Seen:
        return Seen(
            {n: torch.cat([x, x]) for n, x in s.outputs.items()}, {n: torch.cat([x, x]) for n, x in s.inner.items()}
        )

    once = loss(student, teacher, LABELS, learned)
    torch.testing.assert_close(loss(twice(student), twice(teacher), torch.cat([LABELS, LABELS]), learned), once)


@pytest.mark.parametrize(
    "loss",
    [
        KL(),
        KL(standardise=True),
        LogitMSE(),
        LogitMSE(relative=True),
        DKD(),
        DIST(),
        Feature("h"),
        Attention("h"),
        Relational(),
    ],
)
def test_nothing_is_lost_where_student_and_teacher_agree(loss: Loss):
    assert float(loss(seen(2), seen(2), None)) == pytest.approx(0.0, abs=1e-8)


def test_streams_are_those_that_are_found_and_every_so_manieth_of_them():
    loss = (KL() + 2 * Streams(every=2)).placed(lambda: tuple((name, name.upper()) for name in "abcde"))
    assert loss.nodes == (("e", "E"), ("c", "C"), ("a", "A"))
    assert Streams(at=("x",)).placed(tuple).nodes == (("x", "x"),)
    with pytest.raises(InputError, match="student and teacher have none of the same shape in common"):
        Streams().placed(tuple)
    with pytest.raises(InputError, match="every 0th sum; write 1 or more"):
        Streams(every=0)


def test_streams_by_hand():
    h, k = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]])
    given = Seen({"y": h}, {"a": h, "b": k}), Seen({"y": h}, {"a": k, "b": k})
    assert float(Streams(at=("a", "b"))(*given, None)) == pytest.approx((5 / 2 + 0) / 2)  # 10 / 4 and 0


def test_cross_entropy_and_hard_distillation_by_hand():
    z = torch.tensor([[0.0, math.log(3.0)]])
    given = Seen({"y": z})
    assert float(CrossEntropy()(given, given, torch.tensor([0]))) == pytest.approx(math.log(4.0))
    assert float(HardDistillation()(given, given, None)) == pytest.approx(math.log(4.0 / 3.0))


def test_an_image_has_its_classes_on_axis_one_as_in_torch():
    """As many classes as columns, so that the last axis would do, too."""
    draw = torch.Generator().manual_seed(0)
    z, t = (Seen({"output": torch.randn(2, 8, 8, 8, generator=draw)}) for _ in range(2))
    labels = torch.randint(0, 8, (2, 8, 8), generator=draw)
    labels[0, 0] = -100
    wanted = F.cross_entropy(z.output(""), labels)
    assert float(CrossEntropy()(z, t, labels)) == pytest.approx(float(wanted))
    assert float(CrossEntropy()(z, t, labels.masked_fill(labels == -100, 255))) == pytest.approx(float(wanted))
    p, q = (seen.output("").log_softmax(1) for seen in (t, z))
    by_hand = (p.exp() * (p - q)).sum(1).mean()
    assert float(KL(temperature=1)(z, t, None)) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0.0, 1.5]), "found the label 1.5 and the model has the classes 0 to 2"),
        (torch.tensor([0, 3]), "found the label 3"),
        (torch.tensor([255, 1]), "found the label 255"),
        (torch.tensor([0, -1]), "found the label -1 .* -100 where there is none"),
        (torch.tensor([0.0, float("nan")]), "found the label nan"),
        (["a", "b"], "the labels are a list; number the classes from 0"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: object, said: str):
    seen = Seen({"output": torch.randn(2, 3)})
    with pytest.raises(InputError, match=said):
        CrossEntropy()(seen, seen, labels)
    assert math.isfinite(float(CrossEntropy()(seen, seen, torch.tensor([2.0, 1.0]))))


def test_kl_by_hand_and_at_high_temperature_the_squared_difference():
    z, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    wanted = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(KL(1.0)(Seen({"y": z}), Seen({"y": t}), None)) == pytest.approx(wanted)
    a, b = seen(0).outputs["output"], seen(1).outputs["output"]
    centred = (a - a.mean(1, keepdim=True)) - (b - b.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * a.shape[1])  # Hinton et al. 2015, section 2.1
    assert float(KL(1e4)(Seen({"y": a}), Seen({"y": b}), None)) == pytest.approx(float(limit), rel=1e-3)


def test_standardised_scores_may_differ_in_shift_and_scale():
    t = seen(1).outputs["output"]
    assert float(KL(2.0, standardise=True)(Seen({"y": 3 * t + 7}), Seen({"y": t}), None)) == pytest.approx(
        0.0, abs=1e-9
    )


def test_decoupled_is_kl_where_the_weights_are_those_of_its_paper():
    student, teacher = seen(0), seen(1)
    one = Seen({"y": student.outputs["output"][:1]}), Seen({"y": teacher.outputs["output"][:1]})
    p = float((one[1].outputs["y"] / 4).softmax(1)[0, LABELS[0]])
    decoupled = DKD(4.0, alpha=1.0, beta=1 - p)(*one, LABELS[:1])
    assert float(decoupled) == pytest.approx(float(KL(4.0)(*one, None)))


def test_dist_minds_neither_scale_nor_shift_of_probabilities():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.2, 0.3]], dtype=torch.float64)
    q = 0.5 * p + 0.5 / 3
    given = Seen({"y": q.log()}), Seen({"y": p.log()})
    assert float(DIST(1.0, gamma=0.0)(*given, None)) == pytest.approx(0.0, abs=1e-9)


def test_feature_projection_begins_as_the_best_linear_map():
    student = seen(3)
    h = student.inner["narrow"]
    mixed = torch.einsum(
        "nchw,dc->ndhw", h, torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    teacher = Seen({}, {"h": mixed})
    loss = Feature("narrow", "h")
    learned = loss.learned(student, teacher)
    assert learned is not None
    assert float(loss(student, teacher, None, learned.double())) == pytest.approx(0.0, abs=1e-9)


def test_attention_minds_neither_channels_nor_scale():
    h = seen(0).inner["h"]
    loss = Attention("h")
    wide = torch.cat([h, h], 1) * 3
    assert float(loss(Seen({}, {"h": wide}), Seen({}, {"h": h}), None)) == pytest.approx(0.0, abs=1e-9)


def test_relational_by_hand():
    h = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    k = torch.tensor([[0.0], [1.0], [1.0]])
    # distances 3 4 5 in units of 4 (over ordered pairs), 1 1 0 in units of 1
    ours, theirs = [0.75, 1.0, 1.25], [1.0, 1.0, 0.0]
    pairs = [2 * float(F.smooth_l1_loss(torch.tensor(a), torch.tensor(b))) for a, b in zip(ours, theirs, strict=True)]
    found = Relational(distance=1.0, angle=0.0)(Seen({"y": h}), Seen({"y": k}), None)
    assert float(found) == pytest.approx(sum(pairs) / 9)


def test_sums_of_several_heads_read_each_its_own_output_and_labels():
    z = torch.randn(4, 3)
    given = Seen({"colour": z, "size": 2 * z})
    loss = loss_called("cross_entropy(output='colour') + 0.5 * kl(temperature=1, output='size')")
    labels = {"colour": torch.tensor([0, 1, 2, 0]), "size": None}
    wanted = F.cross_entropy(z, labels["colour"])
    assert float(loss(given, given, labels)) == pytest.approx(float(wanted))


def test_every_file_is_a_word():
    words = {module.name for module in pkgutil.iter_modules(losses.__path__)}
    needy = {"feature": "(node='h')", "attention": "(node='h')"}
    made = {type(loss_called(word + needy.get(word, ""))) for word in words}
    assert made == {type(loss) for loss in LOSSES} - {WeightedSum}


def test_words_become_losses():
    assert loss_called("kl") == KL()
    assert loss_called("0.9*kl(temperature=2) + cross_entropy") == WeightedSum(((0.9, KL(2)), (1.0, CrossEntropy())))
    assert (0.5 * loss_called("kl + 2 * dkd")) == WeightedSum(((0.5, KL()), (1.0, DKD())))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("warp", "There is no loss 'warp'; choose one of attention, cross_entropy"),
        ("kl(heat=3)", "The loss kl has no setting 'heat'; it has temperature, standardise, probabilities, output."),
        ("feature", "The loss feature cannot be made of these settings"),
        ("kl +", "cannot be read; write a sum such as"),
        ("kl * kl", "cannot be read; write a sum such as"),
        ("__import__('os')", "cannot be read; write a sum such as"),
        ("3", "cannot be read; write a sum such as"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str):
    with pytest.raises(InputError) as caught:
        loss_called(text)
    assert said in str(caught.value)


def test_what_is_missing_is_said():
    z = Seen({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="write output=NAME in the loss"):
        KL()(z, z, None)
    with pytest.raises(InputError, match="A loss needs labels, and the data has none"):
        CrossEntropy(output="a")(z, z, None)
    with pytest.raises(InputError, match="There are 3 labels for 2 rows"):
        CrossEntropy(output="a")(z, z, torch.zeros(3))
    with pytest.raises(InputError, match="asks for the activation 'h', which the model does not have"):
        Feature("h")(z, z, None)


@pytest.mark.parametrize("loss", [CrossEntropy(), KL(temperature=1), HardDistillation()])
def test_the_classes_lie_where_the_inputs_tell(loss: Loss):
    """A sequence with its classes on axis 1, as torch has them, and as many steps as classes."""
    draw = torch.Generator().manual_seed(0)
    z, t = (torch.randn(2, 4, 4, generator=draw) for _ in range(2))
    labels = torch.randint(0, 4, (2, 4), generator=draw)
    first = [Seen({"y": each}, axes={"y": 1}) for each in (z, t)]
    last = [Seen({"y": each.transpose(1, 2)}) for each in (z, t)]
    assert float(loss(*first, labels)) == pytest.approx(float(loss(*last, labels)))
    unknown = [Seen({"y": each}, axes={"y": None}) for each in (z, t)]
    with pytest.raises(InputError, match=r"cannot tell on which axis of the output \(2, 4, 4\) they lie"):
        loss(*unknown, labels)
