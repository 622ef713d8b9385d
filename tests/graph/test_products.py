"""Products with a parameter, however they are written, are layers, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.graph.macs import macs
from tersor.graph.model import Model, capture, restore
from tersor.rewrites.shrink import shrink
from tersor.site import groups, matrices, tables


class Written(nn.Module):
    """A forward pass that is given as a function of the module and its input."""

    def __init__(self, how: Callable[..., Tensor], **parameters: Tensor | nn.Module):
        super().__init__()
        self.eval()
        self.how = how
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def captured(module: nn.Module, x: Tensor) -> Model:
    """The model, whose outputs are seen to be those of the module at three batch sizes."""
    model = capture(module, (x,))
    for size in (len(x), 1, 3):
        some = torch.cat([x, x])[:size]
        torch.testing.assert_close(model.run(some)[0], module(some), rtol=1e-5, atol=1e-5)
    return model


def layers(model: Model) -> dict[str, tuple[int, ...]]:
    return {m.name: m.shape for m in matrices(model)}


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


WRITTEN = {
    "x @ w": (lambda s, x: x @ s.w, (8, 5), (5, 8)),
    "x @ w.T": (lambda s, x: x @ s.w.T, (5, 8), (5, 8)),
    "linear of a turned one": (lambda s, x: F.linear(x, s.w.T), (8, 5), (5, 8)),
    "mm": (lambda s, x: torch.mm(x[:, 0], s.w), (8, 5), (5, 8)),
    "addmm": (lambda s, x: torch.addmm(torch.ones(5), x[:, 0], s.w, beta=2, alpha=0.5), (8, 5), (5, 8)),
    "w @ x": (lambda s, x: s.w @ x, (5, 3), (5, 3)),
    "w @ x with an axis of one": (lambda s, x: s.w @ x, (1, 5, 3), (5, 3)),
    "a vector": (lambda s, x: x @ s.w, (8,), (1, 8)),
    "linear, parameter first": (lambda s, x: F.linear(s.w, x[:, 0]).T, (5, 8), (5, 8)),
    "linear of a vector": (lambda s, x: F.linear(x, s.w), (8,), (1, 8)),
    "linear of a vector, and more": (lambda s, x: F.linear(x, s.w, x[0, 0, 0] * 0 + 1), (8,), (1, 8)),
    "mv": (lambda s, x: torch.mv(x[:, 0], s.w)[:, None], (8,), (1, 8)),
    "inner": (lambda s, x: torch.inner(x, s.w), (5, 8), (5, 8)),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, dims=([2, 1], [0, 2])), (8, 5, 3), (5, 24)),
    "einsum": (lambda s, x: torch.einsum("bld,dhk->bhlk", x, s.w), (8, 2, 4), (8, 8)),
    "einsum that sums two axes": (lambda s, x: torch.einsum("bld,fdl->bf", x, s.w), (5, 8, 3), (5, 24)),
    "einsum with dots": (lambda s, x: torch.einsum("...d,fd->...f", x, s.w), (5, 8), (5, 8)),
    "einsum that names no result": (lambda s, x: torch.einsum("bld,dz", x, s.w), (8, 5), (5, 8)),
    "einsum, parameter first": (lambda s, x: torch.einsum("df,b...d->b...f", s.w, x), (8, 5), (5, 8)),
}


@pytest.mark.parametrize(("how", "given", "kept"), WRITTEN.values(), ids=WRITTEN)
def test_a_product_is_a_layer_under_the_users_name(how, given, kept):
    model = captured(Written(how, w=values(*given)), values(2, 3, 8))
    assert layers(model) == {"w": kept}
    assert [name for name, _ in model.module.named_parameters()] == ["w"]
    assert macs(model)["w"] > 0


def test_a_network_of_plain_products_is_that_of_linear_layers():
    x, w, v = values(2, 8), values(16, 8), values(3, 16)
    plain = Written(lambda s, x: (x @ s.w + s.b).relu() @ s.v + s.c, w=w.T, b=values(16), v=v.T, c=values(3))
    usual = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    one, other = captured(plain, x), captured(usual, x)
    assert list(layers(one).values()) == list(layers(other).values())
    assert [m.bias for m in matrices(one)] == ["b", "c"]
    assert list(macs(one).values()) == list(macs(other).values())
    assert [(g.blocks, g.kind, g.refused is None) for g in groups(one)] == [
        (16, "neurons", True),
        (3, "neurons", False),
    ]
    small = shrink(one, {"w": tuple(range(4))})
    assert layers(small) == {"w": (4, 8), "v": (3, 4)}
    w, v = (plain.w[:, :4], plain.v[:4])
    torch.testing.assert_close(small.run(x)[0], (x @ w + plain.b[:4]).relu() @ v + plain.c, rtol=1e-5, atol=1e-5)


def test_slices_of_one_parameter_are_layers_of_their_own_and_overlapping_ones_are_not():
    def packed(s: Written, x: Tensor) -> Tensor:
        query, key = F.linear(x, s.w[:8], s.b[:8]), F.linear(x.flip(1), s.w[8:], s.b[8:])
        return (query @ key.transpose(1, 2)).softmax(2)

    model = captured(Written(packed, w=values(16, 8), b=values(16)), values(2, 3, 8))
    assert layers(model) == {"w_1": (8, 8), "w_2": (8, 8)}
    assert [m.bias for m in matrices(model)] == ["b_1", "b_2"]
    both = captured(Written(lambda s, x: F.linear(x, s.w[:6]) + F.linear(x, s.w[2:]), w=values(8, 8)), values(2, 8))
    assert not layers(both)
    assert sum(p.numel() for p in both.module.parameters()) == 64


def test_a_tied_weight_stays_one_weight():
    model = captured(Written(lambda s, x: (x @ s.w).relu() @ s.w.T, w=values(8, 5)), values(2, 8))
    assert layers(model) == {"w": (8, 5)}
    assert sum(p.numel() for p in model.module.parameters()) == 40


def test_a_bias_that_is_computed_from_the_input_leaves_the_weight_a_layer():
    def moved(s: Written, x: Tensor) -> Tensor:
        return F.conv1d(F.linear(x, s.w, x.mean((0, 1)) * 0 + 1), s.v, s.last(x[0, 0]) * 0)

    model = captured(Written(moved, w=values(8, 8), v=values(4, 3, 3), last=nn.Linear(8, 4)), values(2, 3, 8))
    assert {"w": (8, 8), "v": (4, 3, 3)}.items() <= layers(model).items()


def test_products_that_are_no_layer_stay():
    """A matrix for each item of a batch, a product of activations, and one of a constant."""

    def others(s: Written, x: Tensor) -> Tensor:
        each = torch.bmm(x.transpose(0, 1), s.w).transpose(0, 1)
        return each @ each.transpose(1, 2) + x @ torch.ones(8, 3)

    assert not layers(captured(Written(others, w=values(3, 8, 5)), values(2, 3, 8)))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_as_a_word_is_padding_as_numbers(rank, padding):
    """An even kernel pads one more behind; each axis has its own dilation."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    kernel, dilation = (4, 3, 2)[:rank], (1, 2, 3)[:rank]
    net = nn.Sequential(
        conv(2, 6, kernel, padding=padding, dilation=dilation), nn.ReLU(), conv(6, 4, kernel, padding=padding, groups=2)
    )
    model = captured(net, values(2, 2, *(9, 10, 11)[:rank]))
    assert layers(model) == {"0": (6, 2, *kernel), "2": (4, 3, *kernel)}
    assert [g.blocks for g in groups(model) if g.refused is None]


def test_same_padding_costs_what_numbers_cost():
    nets = [
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=p), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=p)) for p in ("same", 1)
    ]
    found = [captured(net, values(2, 3, 16, 16)) for net in nets]
    assert macs(found[0]) == macs(found[1]) == {"0": 110592, "2": 147456}
    assert [g.name for g in groups(found[0])] == [g.name for g in groups(found[1])]


class Stepped(nn.Module):
    """A recurrent cell that is stepped by hand."""

    def __init__(self, cell: nn.Module, two: bool):
        super().__init__()
        self.cell, self.out, self.two = cell, nn.Linear(6, 3), two

    def forward(self, x: Tensor) -> Tensor:
        state = kept = torch.zeros(x.shape[0], 6)
        for step in range(3):
            if self.two:
                state, kept = self.cell(x[:, step], (state, kept))
            else:
                state = self.cell(x[:, step], state)
        return self.out(state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_a_cell_stepped_by_hand_is_two_layers_whose_calls_are_added_up(cell, gates, bias):
    torch.manual_seed(0)
    model = captured(Stepped(cell(8, 6, bias=bias), cell is nn.LSTMCell), values(2, 3, 8))
    assert layers(model) == {"cell.weight_ih": (6 * gates, 8), "cell.weight_hh": (6 * gates, 6), "out": (3, 6)}
    assert macs(model) == {"cell.weight_ih": 3 * 48 * gates, "cell.weight_hh": 3 * 36 * gates, "out": 18}
    (prunable,) = [g for g in groups(model) if g.refused is None]
    small = shrink(model, {prunable.name: (0, 2, 5)})
    assert layers(small) == {"cell.weight_ih": (3 * gates, 8), "cell.weight_hh": (3 * gates, 3), "out": (3, 3)}
    assert small.run(values(2, 3, 8))[0].shape == (2, 3)


def test_a_relu_cell():
    captured(Stepped(nn.RNNCell(8, 6, nonlinearity="relu"), False), values(2, 3, 8))


def test_a_recurrence_written_out_is_one_layer_a_matrix():
    def recurrent(s: Written, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 6)
        for step in range(3):
            state = torch.tanh(x[:, step] @ s.w + state @ s.u + s.b)
        return state @ s.v

    model = captured(Written(recurrent, w=values(8, 6), u=values(6, 6), b=values(6), v=values(6, 2)), values(2, 3, 8))
    assert layers(model) == {"w": (6, 8), "u": (6, 6), "v": (2, 6)}
    assert macs(model) == {"w": 144, "u": 108, "v": 12}
    assert [g.blocks for g in groups(model) if g.refused is None] == [6]


BAGS = [
    ("sum", None, False),
    ("sum", 0, True),
    ("sum", 0, False),
    ("mean", None, False),
    ("mean", 0, False),
    ("max", None, False),
]


@pytest.mark.parametrize(("mode", "padding", "weighted"), [*BAGS, ("max", 0, False)])
def test_a_bag_of_embeddings_is_an_embedding(mode, padding, weighted):
    torch.manual_seed(0)
    bag, ids = nn.EmbeddingBag(10, 8, mode=mode, padding_idx=padding), torch.randint(0, 10, (2, 5))
    ids[0] = 0

    def looked_up(s: Written, x: Tensor) -> Tensor:
        factors = s.f.expand(x.shape[0], -1) if weighted else None
        return s.out(s.bag(x, per_sample_weights=factors).relu())

    model = captured(Written(looked_up, bag=bag, out=nn.Linear(8, 3), f=values(5)), ids)
    known = not (mode == "max" and padding is not None)  # that one stays a bag
    assert [t.name for t in tables(model)] == ["bag"] * known
    assert [g.name for g in groups(model) if g.refused is None] == ["bag"] * known


def test_a_program_in_core_operators_has_the_layers_of_its_module():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Flatten(), nn.Linear(144, 5)
    )
    program = torch.export.export(net.eval(), (values(2, 3, 5, 5),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    model = restore(program.run_decompositions())
    assert layers(model) == {"0": (6, 3, 3, 3), "2": (6, 4, 2, 2), "4": (5, 144)}
    torch.testing.assert_close(model.run(values(2, 3, 5, 5))[0], net(values(2, 3, 5, 5)))
