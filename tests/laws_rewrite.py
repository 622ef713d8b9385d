"""The laws of a rewrite: a plug-in's test inherits `RewriteLaws` and says how it rewrites."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from zoo import ZOO, batch, captured

from tersor.graph.model import Model


class RewriteLaws(ABC):
    """Define `rewrite`, inherit the tests. A rewrite may find nothing to do, but not on every model of the zoo."""

    changes: tuple[str, ...]
    """Models of the zoo on which it must do something."""

    @abstractmethod
    def rewrite(self, model: Model) -> Model:
        """The model rewritten."""

    @pytest.mark.parametrize("name", ZOO)
    def test_outputs_are_equal_and_the_original_is_left_alone(self, name: str):
        model = captured(name)
        before = {n: t.clone() for n, t in model.tensors()}
        code = model.module.code
        other = self.rewrite(model)
        for items in (2, 5):
            flat = batch(model, items)
            given = [t.clone() for t in flat]
            for wanted, got in zip(model.run(*flat), other.run(*flat), strict=True):
                assert wanted.shape == got.shape
                assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()
            assert all(torch.equal(a, b) for a, b in zip(flat, given, strict=True))
        assert model.module.code == code
        assert all(torch.equal(t, before[n]) for n, t in model.tensors())

    def test_it_does_something(self):
        for name in self.changes:
            model = captured(name)
            assert self.rewrite(model).digest() != model.digest(), name

    def test_what_it_gives_exports_again(self):
        for name in self.changes:
            other = self.rewrite(captured(name))
            flat = batch(other, 3)
            args, kwargs = other.arguments(flat)
            for wanted, got in zip(
                other.run(*flat),
                torch.utils._pytree.tree_leaves(other.program().module(check_guards=False)(*args, **kwargs)),
                strict=True,
            ):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
