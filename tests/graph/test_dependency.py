"""What is prunable, under which name, and why not where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import captured

from tersor.graph.model import Model, capture
from tersor.site import Group, Member, groups


def _groups(module: nn.Module, *example: Tensor) -> dict[str, Group]:
    return {group.name: group for group in groups(capture(module.eval(), example))}


def _zoo(name: str) -> tuple[Model, dict[str, Group]]:
    model = captured(name)
    return model, {group.name: group for group in groups(model)}


def test_a_chain_of_convolutions() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    found = _groups(module, torch.randn(2, 3, 9, 9))
    each = tuple((i,) for i in range(8))
    assert found["0"].blocks == 8
    assert found["0"].refused is None
    assert found["0"].members == (
        Member("0.weight", 0, "produces", each),
        Member("0.bias", 0, "produces", each),
        Member("3.weight", 1, "reads", each),
        Member("1.weight", 0, "carries", each),
        Member("1.bias", 0, "carries", each),
        Member("1.running_mean", 0, "carries", each),
        Member("1.running_var", 0, "carries", each),
    )


def test_padded_shortcuts_keep_one_stream_through_all_stages() -> None:
    _, found = _zoo("padded_resnet")
    assert found["0.0"].blocks == 8
    assert found["2.conv2"].blocks == 8  # the eight channels that the second stage adds by padding
    assert {m.positions[0] for m in found["0.0"].members if m.tensor == "2.conv2.weight" and m.axis == 0} == {(4,)}


def test_heads_and_widths_of_attention_are_groups_of_their_own() -> None:
    _, found = _zoo("plain_attention")
    assert {name: g.blocks for name, g in found.items() if not g.refused} == {"q": 4, "q#2": 4, "v": 4}
    heads = next(m for m in found["q"].members if m.tensor == "v.weight" and m.axis == 0)
    assert heads.positions == tuple(tuple(range(4 * h, 4 * h + 4)) for h in range(4))


def test_grouped_queries_go_with_their_key_head() -> None:
    _, found = _zoo("llama")
    sizes = {(m.tensor, m.axis): len(m.positions[0]) for m in found["layers.0.wq"].members}
    assert sizes["layers.0.wq.weight", 0] == 2 * sizes["layers.0.wk.weight", 0]


def test_a_tied_table_is_one_tensor_in_two_roles() -> None:
    _, found = _zoo("llama")
    (width,) = [g for g in found.values() if ("head.weight", 1) in {(m.tensor, m.axis) for m in g.members}]
    roles = {m.role for m in width.members if (m.tensor, m.axis) == ("head.weight", 1)}
    assert roles == {"produces", "reads"}
    assert not any(m.tensor == "embed.weight" for m in width.members)


@pytest.mark.parametrize(
    ("name", "group", "reason"),
    [
        ("padded_resnet", "7", "not prunable: linear is an output of the network"),
        ("sorted", "first", "not prunable: aten.topk.default at node topk has no pruning rule"),
        ("multi_head", "inner.linear2", "not prunable: x is an input of the network"),
        ("mixer", "tokens2", "not prunable: aten.conv2d.default at node conv2d lays it out as image positions"),
        (
            "super_resolution",
            "third",
            "not prunable: aten.pixel_shuffle.default at node pixel_shuffle_1 turns it into image positions",
        ),
    ],
)
def test_a_refusal_names_the_operator_that_forbids_it(name: str, group: str, reason: str) -> None:
    _, found = _zoo(name)
    assert found[group].refused == reason
    assert found[group].members[0].role == "produces"


def test_rows_picked_by_number_are_refused() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[:, torch.tensor([1, 4])])

    found = _groups(Picks(), torch.randn(2, 4))
    assert found["first"].refused is not None
    assert "aten.index.Tensor" in found["first"].refused


@pytest.mark.parametrize(
    ("name", "group", "counted"),
    [
        ("sigmoids", "first", "mean"),
    ],
)
def test_what_counts_the_width_is_named(name: str, group: str, counted: str) -> None:
    _, found = _zoo(name)
    assert counted in found[group].counted


def test_norms_of_what_stays_zero_do_not_count() -> None:
    for name in ("llama", "llama_rms_norm", "vision_transformer", "multi_head", "generator"):
        assert not any(group.counted for group in _zoo(name)[1].values())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, lambda width: nn.GroupNorm(1, width)])
def test_a_norm_of_what_does_not_stay_zero_counts(norm: Callable[[int], nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), norm(6), nn.Linear(6, 3))
    assert all(group.counted for group in _groups(module, torch.randn(2, 4)).values() if not group.refused)


def test_softmax_over_a_prunable_axis_counts_it() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.softmax(self.first(x), -1))

    assert _groups(Gate(), torch.randn(2, 4))["first"].counted == ("softmax",)


def test_names_are_stable_and_unique() -> None:
    for name in ("llama", "vision_transformer", "resnext"):
        model, _ = _zoo(name)
        once, again = ([group.name for group in groups(model)] for _ in range(2))
        assert once == again
        assert len(set(once)) == len(once)


def test_positions_of_a_group_never_overlap() -> None:
    for name in ("llama", "vision_transformer", "resnext", "grouped_shuffle", "generator", "lstm"):
        for group in _zoo(name)[1].values():
            for member in group.members:
                flat = [i for block in member.positions for i in block]
                assert len(flat) == len(set(flat)), (name, group.name, member.tensor)


def test_halves_that_are_used_apart_are_groups_apart() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.first, self.second = nn.Linear(4, 12), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.both(x).chunk(2, -1)
            return self.first(a.relu()) + self.second(b.relu())

    found = _groups(Halves(), torch.randn(2, 4))
    assert [g.blocks for g in found.values() if not g.refused] == [6, 6]
