"""What training makes small: how far a student's answers are from a teacher's, or from labels.

A loss is a frozen dataclass whose fields are its settings. It sees the outputs, and the inner activations that it asks for by
graph node name; which of several outputs it judges, `output` says. `3 * a + 0.5 * b` of losses is a `WeightedSum`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tersor.errors import InputError

IGNORED = -100
"""The label that torch's losses skip."""

VOID = 255
"""The same in the masks of many data sets, where it is no class of the model."""

Pairs = tuple[tuple[str, str], ...]
"""(student's, teacher's) node names of activations that are compared."""


@dataclass(frozen=True)
class Seen:
    """What a model gave for a batch: its flat outputs by name, and activations by node name."""

    outputs: Mapping[str, Tensor]
    inner: Mapping[str, Tensor] = field(default_factory=dict)
    axes: Mapping[str, int | None] = field(default_factory=dict)
    """Where the classes of an output lie; None where that cannot be told. What is not named has them where torch has them."""

    def output(self, name: str) -> Tensor:
        """The output called `name`; the only one where `name` is empty. Raises `InputError`."""
        if not name and len(self.outputs) == 1:
            return next(iter(self.outputs.values()))
        if name not in self.outputs:
            raise InputError(
                f"A loss asks for {f'the output {name!r}' if name else 'the output'}, and the model has "
                f"{', '.join(self.outputs)}; write output=NAME in the loss."
            )
        return self.outputs[name]

    def scores(self, name: str) -> Tensor:
        """Class scores of the output called `name` as (positions, classes). Raises `InputError` where they cannot be told."""
        found = self.output(name)
        known = name or next(iter(self.outputs))
        if self.axes.get(known, 0) is None:
            raise InputError(
                f"A loss of classes cannot tell on which axis of the output {tuple(found.shape)} they lie; choose logit_mse, "
                "or bring items of another length."
            )
        return scores(found, self.axes.get(known))

    def activation(self, name: str) -> Tensor:
        """The activation of the node called `name`. Raises `InputError`."""
        if name not in self.inner:
            raise InputError(f"A loss asks for the activation {name!r}, which the model does not have.")
        return self.inner[name]


class Loss(ABC):
    """A scalar to be minimised. Means are over items, so that the number of items in a batch does not matter."""

    output: str = ""

    @property
    def nodes(self) -> Pairs:
        """(student's, teacher's) node names of the activations that are compared."""
        return ()

    @property
    def labelled(self) -> bool:
        """Whether labels are read."""
        return False

    @property
    def taught(self) -> bool:
        """Whether the teacher is asked."""
        return True

    @property
    def steady(self) -> bool:
        """Whether the gradient of one batch is much like that of another, so that steps may be long."""
        return False

    def placed(self, streams: Callable[[], Pairs]) -> Loss:
        """The loss with the activations that it compares. `streams` gives the residual sums that student and teacher have in
        the same shape, in execution order. Raises `InputError` where it finds none to compare."""
        return self

    def learned(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """Parameters of the loss itself, trained along with the student; None where it has none."""
        return None

    @abstractmethod
    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        """A scalar; gradients flow to `student` and `learned`."""

    def __mul__(self, factor: float) -> WeightedSum:
        return WeightedSum(((float(factor), self),))

    __rmul__ = __mul__

    def __add__(self, other: Loss) -> WeightedSum:
        return WeightedSum((*_terms(self), *_terms(other)))


@dataclass(frozen=True)
class WeightedSum(Loss):
    """`sum_i factor_i * loss_i`."""

    terms: tuple[tuple[float, Loss], ...]

    @property
    def nodes(self) -> Pairs:
        return tuple(pair for _, loss in self.terms for pair in loss.nodes)

    @property
    def labelled(self) -> bool:
        return any(loss.labelled for _, loss in self.terms)

    @property
    def taught(self) -> bool:
        return any(loss.taught for _, loss in self.terms)

    @property
    def steady(self) -> bool:
        return any(loss.steady for _, loss in self.terms)

    def placed(self, streams: Callable[[], Pairs]) -> Loss:
        return WeightedSum(tuple((factor, loss.placed(streams)) for factor, loss in self.terms))

    def learned(self, student: Seen, teacher: Seen) -> nn.Module | None:
        parts = [loss.learned(student, teacher) for _, loss in self.terms]
        return nn.ModuleList([part or nn.Identity() for part in parts]) if any(parts) else None

    def __call__(self, student: Seen, teacher: Seen, labels: Any, learned: nn.Module | None = None) -> Tensor:
        parts: Sequence[Any] = [None] * len(self.terms) if learned is None else list(learned.children())
        values = [f * loss(student, teacher, labels, part) for (f, loss), part in zip(self.terms, parts, strict=True)]
        return sum(values[1:], values[0])

    def __mul__(self, factor: float) -> WeightedSum:
        return WeightedSum(tuple((factor * f, loss) for f, loss in self.terms))

    __rmul__ = __mul__


def _terms(loss: Loss) -> tuple[tuple[float, Loss], ...]:
    return loss.terms if isinstance(loss, WeightedSum) else ((1.0, loss),)


def scores(outputs: Tensor, axis: int | None = None) -> Tensor:
    """Class scores as (items, classes): the classes are on `axis`; where that is None on axis 1 of maps (items, classes,
    height, width), as in torch's `cross_entropy`, and on the last axis of (items, classes) and (items, tokens, classes)."""
    last = outputs.movedim((1 if outputs.ndim > 3 else -1) if axis is None else axis, -1)
    return last.reshape(-1, last.shape[-1])


def classes(labels: Any, like: Tensor, output: str = "") -> Tensor:
    """Labels (one of several by name) as (items,) for scores of (items, classes); 255 in a mask of which that is no class is
    left out, as -100 is. Raises `InputError` where they are no class numbers."""
    found = labels.get(output) if isinstance(labels, Mapping) else labels
    if found is None:
        raise InputError(
            "A loss needs labels, and the data has none; give labels, or a loss such as kl that needs none."
        )
    if not isinstance(found, Tensor):
        raise InputError(
            f"A loss needs class numbers and the labels are a {type(found).__name__}; number the classes from 0."
        )
    flat, count = found.reshape(-1), like.shape[-1]
    if len(flat) != len(like):
        raise InputError(
            f"There are {len(flat)} labels for {len(like)} rows of class scores; their numbers must be equal."
        )
    numbers = flat.long()
    if found.ndim > 1 and found[0].numel() > 1 and 2 < count <= VOID:
        numbers = numbers.masked_fill(numbers == VOID, IGNORED)
    if numbers.device.type == "cpu":  # a look at values on a device would wait for it
        odd = flat[
            (numbers != flat) & (numbers != IGNORED) | (numbers != IGNORED) & ((numbers < 0) | (numbers >= count))
        ]
        if odd.numel():
            raise InputError(
                f"A loss found the label {float(odd[0]):.6g} and the model has the classes 0 to {count - 1}; "
                f"give class numbers, and {IGNORED} where there is none."
            )
    return numbers
