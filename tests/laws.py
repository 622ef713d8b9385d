"""The laws of design.md §5 that every plug-in's test inherits.

A test of a new technique is a subclass of `TechniqueLaws` that lists a few instances; of a new form, a subclass of
`FormLaws` that makes a few weights.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.criteria.obd import OBD
from tersor.maths.damage import best_bias, damage
from tersor.maths.grid import PerChannel, PerGroup, PerTensor
from tersor.maths.pattern import Anywhere, EachRow, NofM, Tiles
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts
from tersor.site import Convolution, Matrix
from tersor.store.weights import from_bytes, to_bytes
from tersor.technique import Technique
from tersor.techniques.gptq import GPTQ
from tersor.techniques.plus import Plus
from tersor.techniques.rounding import Rounding
from tersor.techniques.sparse import Sparse
from tersor.techniques.then import Then
from tersor.weight import Weight

NAMES = {
    c.__name__: c
    for c in (GPTQ, OBD, Plus, Rounding, Sparse, Then, Anywhere, EachRow, NofM, PerChannel, PerGroup, PerTensor, Tiles)
}  # what `eval(repr(t))` may use; a plug-in's test adds its own through `TechniqueLaws.names`


@dataclasses.dataclass(frozen=True)
class Case:
    """One matrix, its weight, and what was measured."""

    matrix: Matrix
    w: Tensor
    facts: Facts

    def damage(self, v: Tensor) -> float:
        """The damage of `v`, its bias repaired where there is one."""
        m, c = self.matrix, self.facts.gram.shape[1] - 1
        old, new = (to_matrix(t, m.groups, m.transposed).double() for t in (self.w, v))
        if m.bias is None:
            return damage(new - old, self.facts.gram[:, :c, :c], self.facts.fisher)
        moved = best_bias(old, new, self.facts.gram)
        return damage(torch.cat([new - old, moved[..., None]], 2), self.facts.gram, self.facts.fisher)


LAYOUTS = ("linear", "convolution", "depthwise", "grouped", "transposed", "transposed and grouped")


def make(layout: str, seed: int, biased: bool = True, samples: int = 200) -> Case:
    """A random weight of a layout, with correlated inputs that do not have mean zero."""
    random = torch.Generator().manual_seed(seed)
    shape, groups, transposed = {
        "linear": ((6, 12), 1, False),
        "convolution": ((8, 4, 3, 3), 1, False),
        "depthwise": ((6, 1, 3, 3), 6, False),
        "grouped": ((8, 3, 3), 2, False),
        "transposed": ((4, 6, 2, 2), 1, True),
        "transposed and grouped": ((4, 3, 2), 2, True),
    }[layout]
    rank = len(shape) - 2
    ones = (1,) * rank
    convolution = Convolution(tuple(shape[2:]), ones, (0,) * rank, ones, groups, transposed) if rank else None
    matrix = Matrix("layer", "node", "layer.weight", "layer.bias" if biased else None, shape, convolution)
    w = torch.randn(shape, generator=random)
    _, rows, c = to_matrix(w, groups, transposed).shape
    mixing = torch.randn(c, c, generator=random, dtype=torch.float64) / c**0.5 + torch.eye(c, dtype=torch.float64)
    x = torch.randn(groups, samples, c, generator=random, dtype=torch.float64) @ mixing + 0.5
    x = torch.cat([x, torch.ones(groups, samples, 1, dtype=torch.float64)], 2)
    fisher = torch.rand(groups * rows, generator=random, dtype=torch.float64) + 0.01
    activity = torch.stack([x.abs().mean(1), (x != 0).double().mean(1)], 1)[:, :, :-1]
    gram = x.mT @ x / samples
    alike = fisher.reshape(groups, rows, 1) * gram.diagonal(dim1=1, dim2=2)[:, None, :-1]
    gradient = alike * (0.5 + torch.rand(alike.shape, generator=random, dtype=torch.float64))
    return Case(matrix, w, Facts(gram, fisher, activity, gradient=gradient))


seeds = st.integers(0, 10_000)
# One draw for each layout by default, many in `make test-all`. Inherited tests run in several classes, which is what
# hypothesis means by differing executors.
thorough = settings(
    max_examples=int(os.environ.get("TERSOR_DRAWS", "1")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors],
)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)  # all of them: a draw of few would leave some out


class TechniqueLaws(ABC):
    """Subclass, list instances, inherit the tests."""

    names: dict[str, Any] = {}  # noqa: RUF012 - extra names for eval(repr(t)), set by subclasses

    @property
    @abstractmethod
    def instances(self) -> Sequence[Technique]:
        """A few settings worth testing."""

    @property
    def nested(self) -> Sequence[Technique]:
        """Settings of growing freedom: damage must not grow along them."""
        return ()

    @property
    def keeps_zeros(self) -> Sequence[Technique]:
        """The instances that promise that exact zeros stay zeros."""
        return self.instances

    @property
    def repairs(self) -> Sequence[Technique]:
        """The instances that promise to make up for dropped columns by what stays."""
        return self.keeps_zeros

    def naive(self, technique: Technique, case: Case) -> Tensor | None:
        """The value that the simplest version of the technique would choose."""
        return None

    def test_its_repr_is_its_name(self):
        for t in self.instances:
            assert eval(repr(t), {**NAMES, **self.names}) == t
            assert hash(t) == hash(eval(repr(t), {**NAMES, **self.names}))

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_keeps_the_shape_and_its_input_and_is_repeatable(self, layout: str, seed: int):
        case = make(layout, seed, biased=(seed + LAYOUTS.index(layout)) % 2 == 0)
        w, gram = case.w.clone(), case.facts.gram.clone()
        for t in self.instances:
            first, second = (t.fit(case.matrix, case.w, case.facts).dense() for _ in range(2))
            assert first.shape == w.shape
            assert first.dtype == torch.float32
            assert torch.equal(first, second)
            assert torch.equal(case.w, w)
            assert torch.equal(case.facts.gram, gram)

    @pytest.mark.parametrize("layout", ["linear", "depthwise", "transposed and grouped"])
    @pytest.mark.parametrize("value", [0.0, -1e-30, 1e38])
    def test_finite_on_constant_and_huge_weights(self, layout: str, value: float):
        case = make(layout, 1)
        w = torch.full_like(case.w, value)
        for t in self.instances:
            assert torch.isfinite(t.fit(case.matrix, w, case.facts).dense()).all(), t

    @pytest.mark.parametrize("layout", ["linear", "depthwise", "transposed and grouped"])
    def test_finite_on_inputs_that_are_dead_repeated_or_never_seen(self, layout: str):
        case = make(layout, 2)
        repeated, dead = case.facts.gram.clone(), case.facts.gram.clone()
        repeated[:, 1], repeated[:, :, 1] = repeated[:, 0], repeated[:, :, 0]
        dead[:, 0], dead[:, :, 0] = 0, 0
        silent = torch.zeros_like(case.facts.fisher)
        for gram, fisher in ((repeated, case.facts.fisher), (dead, silent), (torch.zeros_like(dead), silent)):
            for t in self.instances:
                facts = dataclasses.replace(case.facts, gram=gram, fisher=fisher)
                v = t.fit(case.matrix, case.w, facts).dense()
                assert torch.isfinite(v).all(), t
                assert (v - case.w).abs().max() <= 4 * case.w.abs().max(), t

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_exact_zeros_stay_zeros(self, layout: str, seed: int):
        case = make(layout, seed)
        zeros = torch.rand(case.w.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        w = case.w.masked_fill(zeros, 0)
        for t in self.keeps_zeros:
            assert (t.fit(case.matrix, w, case.facts).dense()[zeros] == 0).all(), t

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_dropped_columns_come_back_as_zeros_and_are_repaired(self, layout: str, seed: int):
        case = make(layout, seed)
        m, c = case.matrix, case.facts.gram.shape[1] - 1
        keep = (*range(0, c, 2), 1)
        dropped = [j for j in range(c) if j not in keep]
        for t in self.keeps_zeros:
            v = t.fit(m, case.w, case.facts, keep).dense()
            assert (to_matrix(v, m.groups, m.transposed)[:, :, dropped] == 0).all(), t
            if t not in self.repairs:
                continue
            alone = to_matrix(t.fit(m, case.w, case.facts).dense(), m.groups, m.transposed).clone()
            alone[:, :, dropped] = 0
            unrepaired = case.damage(from_matrix(alone, case.w.shape, m.groups, m.transposed))
            assert case.damage(v) <= unrepaired * (1 + 1e-6) + 1e-12, t

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_never_worse_than_its_naive_version(self, layout: str, seed: int):
        case = make(layout, seed)
        for t in self.instances:
            naive = self.naive(t, case)
            if naive is not None:
                mine = case.damage(t.fit(case.matrix, case.w, case.facts).dense())
                assert mine <= case.damage(naive) * (1 + 1e-6) + 1e-12, t

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_never_worse_with_more_freedom(self, layout: str, seed: int):
        case = make(layout, seed, biased=(seed + LAYOUTS.index(layout)) % 2 == 0)
        damages = [case.damage(t.fit(case.matrix, case.w, case.facts).dense()) for t in self.nested]
        for t, less, more in zip(self.nested[1:], damages, damages[1:], strict=False):
            assert more <= less * (1 + 1e-6) + 1e-12, t

    @every_layout
    @thorough
    @given(seed=seeds)
    def test_what_it_returns_is_on_its_own_set(self, layout: str, seed: int):
        case = make(layout, seed)
        for t in self.instances:
            weight = t.fit(case.matrix, case.w, case.facts)
            assert torch.allclose(weight.nearest(weight.dense()).dense(), weight.dense(), rtol=1e-5, atol=1e-6), t


class FormLaws(ABC):
    """Subclass, make weights, inherit the tests."""

    @abstractmethod
    def weights(self, seed: int) -> Sequence[Weight]:
        """A few weights of this form."""

    @thorough
    @given(seeds)
    def test_dense_is_pure(self, seed: int):
        for weight in self.weights(seed):
            first = weight.dense()
            kept = first.clone()
            first += 1
            assert torch.equal(weight.dense(), kept)
            assert kept.dtype == torch.float32

    @thorough
    @given(seeds)
    def test_disk_and_back_is_the_identity(self, seed: int):
        for weight in self.weights(seed):
            again = from_bytes(to_bytes({"w": weight}))["w"]
            assert type(again) is type(weight)
            assert torch.equal(again.dense(), weight.dense())
            assert again.nbytes == weight.nbytes

    @thorough
    @given(seeds)
    def test_nbytes_is_what_the_file_grows_by(self, seed: int):
        for weight in self.weights(seed):
            file = to_bytes({"w": weight})
            assert weight.nbytes == len(file) - 8 - int.from_bytes(file[:8], "little")  # without the header

    @thorough
    @given(seeds)
    def test_nearest_is_near_and_stays(self, seed: int):
        for weight in self.weights(seed):
            value = weight.dense()
            again = weight.nearest(value)
            assert torch.allclose(again.dense(), value, rtol=1e-5, atol=1e-6)
            noisy = value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            near = weight.nearest(noisy)
            assert near.dense().shape == value.shape
            assert (near.dense() - noisy).norm() <= (value - noisy).norm() * (1 + 1e-5)
            assert torch.equal(weight.dense(), value)
