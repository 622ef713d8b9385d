"""Channels in another order: the same outputs at any batch, or a refusal."""

from __future__ import annotations

import pytest
import torch
from laws_rewrite import RewriteLaws
from zoo import ZOO, batch, captured

from tersor.errors import ModelError
from tersor.graph.model import Model
from tersor.maths.pattern import NofM
from tersor.profile import measure
from tersor.rewrites.permute import arranged, permute
from tersor.site import groups, matrices
from tersor.techniques.sparse import Sparse


class TestPermute(RewriteLaws):
    changes = ("padded_resnet", "llama")

    def rewrite(self, model: Model) -> Model:
        for group in groups(model):
            if group.refused is None:
                try:
                    model = permute(model, {group.name: range(group.blocks)[::-1]})
                except ModelError as refusal:
                    assert f"The order of {group.name} matters to this model" in str(refusal)  # noqa: PT017
        return model


@pytest.mark.parametrize("name", ZOO)
def test_every_group_keeps_the_outputs_or_is_refused(name):
    model = captured(name)
    permuted = 0
    for group in groups(model):
        if group.refused is None:
            order = torch.randperm(group.blocks, generator=torch.Generator().manual_seed(1)).tolist()
            try:
                other = permute(model, {group.name: order})
            except ModelError as refusal:
                assert f"The order of {group.name} matters to this model" in str(refusal)  # noqa: PT017
                continue
            permuted += 1
            for size in (2, 3):
                x = batch(model, size)
                for a, b in zip(model.run(*x), other.run(*x), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert permuted or name in {"sorted", "two_inputs"} or not any(g.refused is None for g in groups(model))


@pytest.mark.parametrize("name", ["llama", "vision_transformer"])
def test_the_arranged_model_is_the_same_and_loses_less(name):
    model = captured(name)
    batches = [tuple(batch(model, 16))]
    profile = measure(model, batches)
    pattern = NofM(2, 4)
    other = arranged(model, profile, pattern)
    for a, b in zip(model.run(*batches[0]), other.run(*batches[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    again = measure(other, batches)

    def kept(model, profile):
        found = 0.0
        for m in (m for m in matrices(model) if m.convolution is None):
            facts, w = profile.facts[m.name], model.tensor(m.weight)
            there = Sparse(pattern, repair=False).fit(m, w, facts).dense() != 0
            h = facts.gram[0].diagonal()[:-1] - facts.gram[0, -1, :-1].square()
            found += float((facts.fisher[:, None] * h * w.double().square() * there).sum())
        return found

    assert kept(other, again) > kept(model, profile)
