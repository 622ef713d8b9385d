"""Removing is the same as zeroing: on every architecture of the zoo, group by group and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, batch, captured

from tersor.errors import ModelError
from tersor.graph.model import Model, capture
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.shrink import mask, shrink
from tersor.site import Group, groups

Keep = Mapping[str, Sequence[int]]


def cut(found: Sequence[Group]) -> dict[str, list[int]]:
    """Keep two blocks of three, at least one."""
    return {g.name: [b for b in range(g.blocks) if (b + 1) % 3] if g.blocks > 2 else [0] for g in found}


def size(model: Model) -> int:
    return sum({t.data_ptr(): t.numel() for _, t in model.tensors()}.values())


def assert_same(masked: Model, shrunk: Model) -> None:
    for items in (2, 5):
        flat = batch(masked, items)
        for wanted, got in zip(masked.run(*flat), shrunk.run(*flat), strict=True):
            assert wanted.shape == got.shape
            largest = wanted.abs().max()
            assert (wanted - got).abs().max() <= 1e-4 * largest
            assert (wanted - wanted.mean(0)).abs().max() > 1e-3 * largest, "the output does not depend on the input"


def free(model: Model) -> list[Group]:
    return [g for g in groups(model) if g.refused is None and not g.counted]


@pytest.mark.parametrize("name", ZOO)
def test_removing_is_zeroing(name: str) -> None:
    model = captured(name)
    found = free(model)
    assert found
    before = {n: t.clone() for n, t in model.tensors()}
    for keep in [cut([group]) for group in found] + [cut(found)]:
        shrunk = shrink(model, keep)
        assert_same(mask(model, keep), shrunk)
        assert size(shrunk) < size(model)
    assert all(torch.equal(t, before[n]) for n, t in model.tensors())


@pytest.mark.parametrize("name", ["padded_resnet", "unet", "vision_transformer", "llama", "generator", "two_inputs"])
def test_a_shrunk_model_exports_again_with_a_dynamic_batch(name: str) -> None:
    model = captured(name)
    everything = [g for g in groups(model) if g.refused is None]
    shrunk = shrink(model, cut(everything))
    again = shrunk.program().module(check_guards=False)
    flat = batch(model, 4)
    args, kwargs = shrunk.arguments(flat)
    for wanted, got in zip(shrunk.run(*flat), torch.utils._pytree.tree_leaves(again(*args, **kwargs)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["padded_resnet", "gated", "densenet"])
def test_folded_norms_change_nothing(name: str) -> None:
    model = fold_norms(captured(name))
    keep = cut(free(model))
    assert_same(mask(model, keep), shrink(model, keep))


def test_shrinking_twice_is_shrinking_once() -> None:
    model = captured("padded_resnet")
    name, other = "1.conv1", "2.conv1"
    once = shrink(model, {name: [0, 1, 2], other: range(8)})
    twice = shrink(shrink(model, {name: [0, 1, 2]}), {other: range(8)})
    flat = batch(model, 3)
    assert torch.equal(once.run(*flat)[0], twice.run(*flat)[0])
    assert [g.blocks for g in groups(twice)] == [g.blocks for g in groups(once)]


def test_nothing_to_remove_is_the_model_itself() -> None:
    model = captured("unet")
    flat = batch(model, 3)
    assert torch.equal(shrink(model, {}).run(*flat)[0], model.run(*flat)[0])


def test_tied_tensors_stay_tied() -> None:
    model = captured("llama")
    shrunk = shrink(model, cut(free(model)))
    tensors = dict(shrunk.tensors())
    assert tensors["embed.weight"].data_ptr() == tensors["head.weight"].data_ptr()
    assert tensors["embed.weight"].shape[1] < 32


def test_recorded_shapes_follow() -> None:
    model = captured("padded_resnet")
    shrunk = shrink(model, {"1.conv1": [0, 5]})
    for node in shrunk.graph.nodes:
        if node.op == "get_attr":
            assert node.meta["val"].shape == shrunk.tensor(str(node.target)).shape


def test_constants_written_in_the_forward_pass() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            return self.second(torch.cat([y, torch.ones(y.shape[0], 2)], 1))

    torch.manual_seed(0)
    model = capture(Constants().eval(), (torch.randn(2, 4),))
    keep = cut(free(model))
    assert "first" in keep
    assert_same(mask(model, keep), shrink(model, keep))


def test_batch_and_heads_in_one_axis() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            n, length, _ = x.shape
            q, k, v = (
                f(x).view(n, length, 3, 4).transpose(1, 2).reshape(n * 3, length, 4) for f in (self.q, self.k, self.v)
            )
            y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
            return self.out(y.view(n, 3, length, 4).transpose(1, 2).reshape(n, length, 12)).sum(1)

    torch.manual_seed(0)
    model = capture(Merged().eval(), (torch.randn(2, 5, 12),))
    found = free(model)
    assert sorted(g.blocks for g in found) == [3, 4, 4]
    for keep in [cut([g]) for g in found] + [cut(found)]:
        assert_same(mask(model, keep), shrink(model, keep))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"1.conv1": []}, "would keep none of its 8 blocks; keep at least one"),
        ({"1.conv1": [0, 8]}, "has blocks 0 to 7; block 8 was to be kept"),
        ({"nowhere": [0]}, "no prunable group 'nowhere'; it has 0.0, 1.conv1"),
        ({"7": [0]}, "no prunable group '7'"),
    ],
)
def test_impossible_wishes(keep: Keep, message: str) -> None:
    model = captured("padded_resnet")
    for rewrite in (shrink, mask):
        with pytest.raises(ModelError, match=message):
            rewrite(model, keep)
