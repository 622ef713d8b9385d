"""A recipe knows the data it was made from, whatever the order of the items."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tersor.errors import DataWarning, RecipeError
from tersor.inputs.job import Job, bring, fingerprint, quiet
from tersor.measuring.batches import Batches
from tersor.recipe import Recipe, other_data, read_recipe

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def job(x: torch.Tensor, size: int = 10) -> Job:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3)).eval()
    return bring((net, X[:2]), list(x.split(size)), "cosine", 0.0, None, 1, 1, 0, (), None, quiet)


def test_a_hash_of_items_does_not_see_their_order_nor_their_batches() -> None:
    whole = Batches.of(X)
    assert whole.unordered() == Batches.of(X[torch.randperm(60)], size=7).unordered()
    assert whole.unordered() != Batches.of(X + 1e-6).unordered()
    assert whole.unordered() != Batches.of(torch.cat([X, X[:1]])).unordered()
    assert Batches.of(X[:4]).unordered() != Batches.of(X[[0, 1, 2, 2]]).unordered()


def test_a_recipe_says_where_data_or_order_differ() -> None:
    made = fingerprint(job(X))
    recipe = Recipe(("eager", "fp32"), None, 0, 40, 1, data=made)
    assert other_data(recipe, fingerprint(job(X, 12))) is None
    shuffled = other_data(recipe, fingerprint(job(X[torch.randperm(60, generator=torch.Generator().manual_seed(3))])))
    assert shuffled is not None
    assert "same items in another order" in shuffled
    other = other_data(recipe, fingerprint(job(X + 0.5)))
    assert other is not None
    assert "made from other data" in other
    assert other_data(dataclasses.replace(recipe, data=None), made) is None  # recipes of before know nothing


def test_the_hashes_are_in_the_file() -> None:
    made = fingerprint(job(X))
    recipe = Recipe(("eager", "fp32"), None, 0, 40, 1, data=made)
    assert read_recipe(recipe.to_yaml()) == recipe
    assert read_recipe(dataclasses.replace(recipe, data=None).to_yaml()).data is None
    with pytest.raises(RecipeError, match="says data: 'none'"):
        read_recipe(recipe.to_yaml().split("data:")[0] + "data: none\n")


def test_a_promise_on_few_items_is_warned_of_when_the_job_begins() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3)).eval()
    data = [(X[:16], net(X[:16]).argmax(1))]
    with pytest.warns(DataWarning) as said:
        bring((net, X[:2]), data, "accuracy", "0.5%", None, 1, 1, 0, (), None, quiet)
    texts = [str(w.message) for w in said]
    assert any("checked on 8 evaluation items, where one item counts 12.5 points" in text for text in texts)
    assert any("right on all 8 evaluation items" in text for text in texts)
