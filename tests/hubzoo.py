"""Small networks for the hub and the targets, and the plainest 8-bit compression of them."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.forms.affine import affine
from tersor.graph.model import Model, capture
from tersor.hub.export import Exported, to_onnx
from tersor.maths.grid import Grid as WeightGrid
from tersor.measuring.machine import weight_bits
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import matrices
from tersor.target import Compressed, Grid


class Residual(nn.Module):
    """Stem, identity block, strided block with a sliced and padded shortcut, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(shortcut + self.d(F.relu(self.c(x))))
        return self.head(x.mean((2, 3)))


class Several(nn.Module):
    """Two inputs, a dict of outputs, a linear on three dimensions, an input that is also an output."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.score = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, tokens: Tensor, shift: Tensor) -> dict[str, Tensor]:
        hidden = F.gelu(self.project(tokens))
        return {"hidden": hidden, "scores": self.score(hidden.mean(1)) + shift, "shift": shift}


class Wide(nn.Module):
    """Concatenation, max pool, clip at six, a projection shortcut and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.deep, self.short = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.left(x)), F.relu6(self.right(x))], 1)
        y = F.max_pool2d(y, 2)
        y = F.relu(self.deep(y) + self.short(y))
        return F.avg_pool2d(self.head(y), 4).flatten(1)


class Positions(nn.Module):
    """What is learned for each position, looked up where nobody asks, added to what is looked up for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(4000, 8)
        self.norm, self.score = nn.LayerNorm(8), nn.Linear(8, 3)
        self.register_buffer("order", torch.arange(7)[None])

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(self.norm(self.words(ids) + self.places(self.order)))


def example(name: str, items: int, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    if name == "several":
        return torch.randn(items, 7, 6, generator=draw), torch.randn(items, 3, generator=draw)
    if name == "positions":
        return (torch.randint(0, 20, (items, 7), generator=draw),)
    return (torch.randn(items, 3, 8, 8, generator=draw),)


@cache
def captured(name: str) -> Model:
    torch.manual_seed(1)
    module = {"residual": Residual, "several": Several, "wide": Wide, "positions": Positions}[name]().eval()
    if isinstance(module, Residual):
        nn.init.normal_(module.norm.running_mean, std=0.2)
        nn.init.uniform_(module.norm.running_var, 0.5, 2.0)
    return fold_norms(capture(module, example(name, 2)))


def quantised(model: Model, batches: list[tuple[Tensor, ...]], bits: int | None = None) -> Compressed:
    """Nearest symmetric weights per channel, in as many bits as this machine can; activations between their extremes."""
    bits = bits or weight_bits()
    model, top = model.copy(), 2 ** (bits - 1) - 1
    weights = {}
    for matrix in matrices(model):
        w = model.tensor(matrix.weight)
        scale = w.flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-12).double() / top
        codes = torch.round(w.flatten(1) / scale).clamp(-top, top)
        grid = WeightGrid(scale.float().double(), torch.zeros(1, 1).double(), codes.shape[1], -top, top)
        weights[matrix.weight] = affine(codes, grid, bits, tuple(w.shape), matrix.groups, False)
        model.assign(matrix.weight, weights[matrix.weight].dense())
    return Compressed(model, weights, _feeds(model, batches))


def _feeds(model: Model, batches: list[tuple[Tensor, ...]]) -> dict[str, Grid]:
    ends: dict[str, tuple[float, float]] = {}

    def visit(node: torch.fx.Node, value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point() and node.op in ("placeholder", "call_function"):
            low, high = ends.get(node.name, (0.0, 0.0))
            ends[node.name] = min(low, float(value.min())), max(high, float(value.max()))
        return value

    for batch in batches:
        model.interpret(batch, visit)
    grids = {}
    for name, (low, high) in ends.items():
        scale = (high - low) / 255 or 1.0
        grids[name] = Grid(scale, round(-low / scale))
    return grids


@cache
def compressed(name: str, bits: int | None = None) -> Compressed:
    return quantised(captured(name), [example(name, 16, seed) for seed in (10, 11)], bits)


@cache
def hub(name: str) -> Exported:
    """The float file, never to be changed."""
    return to_onnx(compressed(name))
