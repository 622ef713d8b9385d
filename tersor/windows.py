"""What is left of each matrix when blocks of groups are removed: the bridge between the whole and the smaller matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tersor.errors import ModelError
from tersor.graph.dependency import Dependency, analyse
from tersor.graph.kept import flat_index, kept_positions
from tersor.graph.model import Model
from tersor.maths.obs import damped, solve
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts, Profile
from tersor.rewrites.shrink import shrink
from tersor.site import Matrix, matrices

REPAIR = 1e-2  # ridge of the refit to the kept columns, in mean diagonals of H


@dataclass(frozen=True)
class Window:
    """The part of a (groups, r, c) matrix that stays: a smaller (groups', r', c') matrix, stored in `shape`.

    group (groups',), rows (groups', r') and columns (groups', c') are indices into the whole matrix; `width` is c.
    """

    group: Tensor
    rows: Tensor
    columns: Tensor
    shape: tuple[int, ...]
    width: int

    @property
    def cuts_columns(self) -> bool:
        return self.columns.shape[1] != self.width

    def of(self, w: Tensor) -> Tensor:
        """(groups', r', c') of (groups, r, >= c), columns past c (the constant) staying too."""
        return w[self.group[:, None, None], self.rows[:, :, None], self._with_rest(w.shape[2])[:, None, :]]

    def some_rows(self, w: Tensor) -> Tensor:
        """(groups', r', *) of (groups, r, *), all columns."""
        return w[self.group[:, None], self.rows]

    def some_columns(self, w: Tensor) -> Tensor:
        """(groups', *, c') of (groups, *, >= c), all rows, columns past c staying too."""
        wide = w[self.group]
        index = self._with_rest(w.shape[2])[:, None, :].expand(-1, wide.shape[1], -1)
        return wide.gather(2, index)

    def square(self, gram: Tensor) -> Tensor:
        """(groups', c' + 1, c' + 1) of a Gram matrix (groups, c + 1, c + 1), the constant staying."""
        c = self._with_rest(gram.shape[2])
        return gram[self.group[:, None, None], c[:, :, None], c[:, None, :]]

    def of_facts(self, facts: Facts) -> Facts:
        """What is known about the smaller matrix."""
        rows = self.some_rows(facts.fisher.reshape(len(facts.gram), -1, 1))
        gradient, moved = (None if f is None else self.of(f) for f in (facts.gradient, facts.movement))
        activity = self.some_columns(facts.activity)
        return Facts(self.square(facts.gram), rows.reshape(-1), activity, gradient=gradient, movement=moved)

    def put_back(self, v: Tensor, whole: Tensor) -> Tensor:
        """(groups, r, c) like `whole`, `v` where it stood and zeros elsewhere."""
        out = torch.zeros_like(whole)
        c = self._with_rest(whole.shape[2])
        out[self.group[:, None, None], self.rows[:, :, None], c[:, None, :]] = v.to(whole.dtype)
        return out

    def _with_rest(self, width: int) -> Tensor:
        return torch.cat([self.columns, torch.arange(self.width, width).expand(len(self.columns), -1)], 1)


def windows(model: Model, keep: Mapping[str, Sequence[int]], dependency: Dependency | None = None) -> dict[str, Window]:
    """By matrix name, what stays of it when `keep[group]` are the blocks that stay; other groups stay whole.

    `dependency` is that of `model`, where it is known already.
    """
    kept = kept_positions(dependency or analyse(model), keep) if keep else {}
    return {m.name: _window(m, kept.get(m.weight)) for m in matrices(model)}


def repaired(window: Window, w: Tensor, gram: Tensor, biased: bool) -> Tensor:
    """What stays of `w` (groups, r, c + 1), moved to make up for the dropped columns: `V_K = W H_:K (H_KK)^-1`."""
    h = damped(gram, REPAIR)
    kept, square = window.some_columns(h), window.square(h)
    size = square.shape[2] if biased else square.shape[2] - 1
    v = window.of(w)
    v[:, :, :size] = solve(window.some_rows(w) @ kept[:, :, :size], square[:, :size, :size])
    return v


def with_bias(model: Model, matrix: Matrix) -> Tensor:
    """The values of `matrix` (groups, r, c + 1), the bias (or 0) last, float64."""
    w = to_matrix(model.tensor(matrix.weight), matrix.groups, matrix.transposed).double()
    bias = model.tensor(matrix.bias).double() if matrix.bias is not None else w.new_zeros(w.shape[:2].numel())
    return torch.cat([w, bias.reshape(*w.shape[:2], 1)], 2)


def smaller(matrix: Matrix, window: Window) -> Matrix:
    """`matrix` as it is once only `window` is left of it."""
    if matrix.convolution is None:
        return replace(matrix, shape=window.shape)
    return replace(matrix, shape=window.shape, convolution=replace(matrix.convolution, groups=len(window.group)))


@dataclass(frozen=True)
class Narrowing:
    """Makes narrower models of one model by the cheapest repair there is: the readers of a narrowed group are refitted
    to what stays, as if their inputs had not changed otherwise. Cost: a copy of the model, and c^3 a reader."""

    model: Model
    profile: Profile
    dependency: Dependency

    def __call__(self, keep: Mapping[str, Sequence[int]]) -> Model:
        """The model without the blocks that `keep` does not name."""
        small = shrink(self.model, keep, self.dependency)
        left = windows(self.model, keep, self.dependency)
        for matrix in matrices(self.model):
            window = left[matrix.name]
            if window.cuts_columns:
                biased, tiny = matrix.bias is not None, smaller(matrix, window)
                v = repaired(window, with_bias(self.model, matrix), self.profile.facts[matrix.name].gram, biased)
                weight = from_matrix(v[:, :, :-1], tiny.shape, tiny.groups, tiny.transposed)
                small.assign(matrix.weight, weight.float())
                if matrix.bias is not None:
                    small.assign(matrix.bias, v[:, :, -1].reshape(-1).float())
        return small


def narrowing(model: Model, profile: Profile) -> Narrowing:
    """Of a model and what was measured of it."""
    return Narrowing(model, profile, analyse(model))


def _window(matrix: Matrix, kept: Sequence[Sequence[int]] | None) -> Window:
    transposed = matrix.convolution is not None and matrix.convolution.transposed
    if kept is None:
        shape = to_matrix(torch.empty(matrix.shape, device="meta"), matrix.groups, transposed).shape
        groups, rows, columns = (torch.arange(size) for size in shape)
        return Window(groups, rows.repeat(shape[0], 1), columns.repeat(shape[0], 1), matrix.shape, shape[2])
    numbers = to_matrix(torch.arange(prod(matrix.shape)).reshape(matrix.shape), matrix.groups, transposed)
    index = flat_index(matrix.shape, kept)
    place = torch.empty(numbers.numel(), dtype=torch.long)
    place[numbers.reshape(-1)] = torch.arange(numbers.numel())
    count = len(torch.unravel_index(place[index.reshape(-1)], numbers.shape)[0].unique())
    small = to_matrix(index, count, transposed)
    g, r, c = torch.unravel_index(place[small.reshape(-1)], numbers.shape)
    g, r, c = (each.reshape(small.shape) for each in (g, r, c))
    # copies, for a view would keep three indices of every single weight
    group, rows, columns = g[:, 0, 0].clone(), r[:, :, 0].clone(), c[:, 0, :].clone()
    window = Window(group, rows, columns, tuple(index.shape), numbers.shape[2])
    expected = numbers[window.group[:, None, None], window.rows[:, :, None], window.columns[:, None, :]]
    if not torch.equal(expected, small):
        raise ModelError(
            f"What is left of '{matrix.name}' is no smaller matrix: its {matrix.groups} groups lose different channels; "
            "leave the group that cuts it whole."
        )
    return window
