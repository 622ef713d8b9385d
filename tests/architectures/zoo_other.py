"""What is neither from transformers nor a plain convolutional network, and the entries that the small zoo has already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import zoo
from architecture import Architecture, ids
from torch import Tensor, nn
from zoo import convolution


class Causal(nn.Module):
    """Two dilated causal convolutions around a shortcut."""

    def __init__(self, c: int, r: int, dilation: int):
        super().__init__()
        self.dilation, self.short = dilation, nn.Conv1d(c, r, 1)
        self.first, self.second = nn.Conv1d(c, r, 3, dilation=dilation), nn.Conv1d(r, r, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        pad = (2 * self.dilation, 0)
        return F.relu(self.second(F.pad(F.relu(self.first(F.pad(x, pad))), pad)) + self.short(x))


class Temporal(nn.Module):
    """Causal blocks, the last step classified (TCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(Causal(3, 12, 1), Causal(12, 16, 2)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :, -1])


class Waves(nn.Module):
    """tanh times sigmoid, residual and skip outputs (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 12, 2)
        self.filters, self.gates = (
            nn.ModuleList(nn.Conv1d(12, 16, 2, dilation=d) for d in (1, 2, 4)) for _ in range(2)
        )
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(16, r, 1) for _ in range(3)) for r in (12, 14))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(14, 14, 1), nn.ReLU(), nn.Conv1d(14, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), None
        for filter_, gate, residual, skip in zip(self.filters, self.gates, self.residual, self.skip, strict=True):
            y = torch.tanh(filter_(x)) * torch.sigmoid(gate(x))
            x = residual(y) + x[:, :, -y.shape[2] :]
            part = skip(y)
            total = part if total is None else part + total[:, :, -part.shape[2] :]
        return self.end(total)


class Readers(nn.Module):
    """Convolutions, columns read by a bidirectional LSTM, a class for each column (CRNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(1, 8), nn.MaxPool2d(2), convolution(8, 12), nn.MaxPool2d((4, 2)))
        self.cell, self.head = nn.LSTM(24, 10, bidirectional=True, batch_first=True), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.body(x).flatten(1, 2).transpose(1, 2))[0])


class Attended(nn.Module):
    """A GRU encoder whose states are weighed by additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(50, 12), nn.GRU(12, 16, batch_first=True)
        self.score, self.value, self.head = nn.Linear(16, 10), nn.Linear(10, 1), nn.Linear(16, 5)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.cell(self.embed(words))
        weight = self.value(torch.tanh(self.score(states))).softmax(1)
        return self.head((states * weight).sum(1))


class TwoTowers(nn.Module):
    """Users and items, each an embedding and a small network, compared by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 16), nn.Embedding(60, 12)
        self.left = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10))
        self.right = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 10))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        left, right = (
            F.normalize(self.left(self.users(user)), dim=-1),
            F.normalize(self.right(self.items(item)), dim=-1),
        )
        return (left * right).sum(-1, keepdim=True)


class Factors(nn.Module):
    """Several fields, a factorisation machine and a deep network over the same embeddings (DeepFM)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(60, 8), nn.Embedding(60, 1)
        self.deep = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, fields: Tensor) -> Tensor:
        x = self.embed(fields)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(-1, keepdim=True)
        return self.first(fields).sum(1) + pairs + self.deep(x.flatten(1))


class Crossed(nn.Module):
    """Dense features bottom-up, pairwise products with embedded ones, a top network (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(30, 8) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.top = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        parts = torch.stack([x, *(table(sparse[:, i]) for i, table in enumerate(self.tables))], 1)
        return self.top(torch.cat([x, (parts @ parts.transpose(1, 2)).flatten(1)], 1))


class CrossNet(nn.Module):
    """x0 * (W x + b) + x, beside a deep network (DCN v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cross = nn.Embedding(60, 4), nn.ModuleList(nn.Linear(20, 20) for _ in range(2))
        self.deep, self.head = (
            nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU()),
            nn.Linear(32, 1),
        )

    def forward(self, fields: Tensor) -> Tensor:
        start = x = self.embed(fields).flatten(1)
        for layer in self.cross:
            x = start * layer(x) + x
        return self.head(torch.cat([x, self.deep(start)], 1))


class GraphConvolution(nn.Module):
    """Features of nodes, mixed along a given adjacency (GCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, nodes: Tensor, links: Tensor) -> Tensor:
        x = F.relu(links @ self.first(nodes))
        return self.head(F.relu(links @ self.second(x)))


class Points(nn.Module):
    """Shared layers over points, the maximum over all of them (PointNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 1), nn.ReLU())
        self.all = nn.Sequential(nn.Conv1d(40, 20, 1), nn.ReLU(), nn.Conv1d(20, 4, 1))

    def forward(self, points: Tensor) -> Tensor:
        low = self.each[:3](points)
        whole = self.each[3:](low).amax(2, keepdim=True).expand(-1, -1, points.shape[2])
        return self.all(torch.cat([low, whole], 1))


class Gates(nn.Module):
    """t * H(x) + (1 - t) * x (highway network)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 20), nn.Linear(20, 4)
        self.ways, self.gates = (nn.ModuleList(nn.Linear(20, 20) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for way, gate in zip(self.ways, self.gates, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(way(x)) + (1 - t) * x
        return self.head(x)


class Latents(nn.Module):
    """A few learnt vectors that read the input by cross attention (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 5, 24))
        self.q, self.kv, self.out = nn.Linear(24, 24), nn.Linear(10, 48), nn.Linear(24, 24)
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(24),
            nn.Linear(24, 40),
            nn.Linear(40, 24),
            nn.Linear(24, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        z = self.latents.expand(n, -1, -1)
        q = self.q(z).view(n, 5, 3, 8).transpose(1, 2)
        k, v = (t.view(n, length, 3, 8).transpose(1, 2) for t in self.kv(x).chunk(2, -1))
        z = z + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 5, 24))
        z = z + self.down(F.gelu(self.up(self.norm(z))))
        return self.head(z.mean(1))


class Conformer(nn.Module):
    """Half-step feed-forward, attention, gated depthwise convolution, half-step feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, 16), nn.Linear(16, 5)
        self.before, self.after = (
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)) for _ in range(2)
        )
        self.norm1, self.attention = nn.LayerNorm(16), zoo.SelfAttention(16, 2)
        self.norm2, self.point, self.back = nn.LayerNorm(16), nn.Conv1d(16, 40, 1), nn.Conv1d(20, 16, 1)
        self.depth, self.norm3, self.norm4 = (
            nn.Conv1d(20, 20, 5, padding=2, groups=20),
            nn.BatchNorm1d(20),
            nn.LayerNorm(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * self.before(x)
        x = x + self.attention(self.norm1(x))
        y = F.glu(self.point(self.norm2(x).transpose(1, 2)), 1)
        x = x + self.back(F.silu(self.norm3(self.depth(y)))).transpose(1, 2)
        return self.head(self.norm4(x + 0.5 * self.after(x)))


class Siamese(nn.Module):
    """One body for two images, compared by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(3, 8, 3, 2), convolution(8, 12, 3, 2), nn.Flatten(), nn.Linear(192, 14))
        self.head = nn.Linear(14, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.body(left) - self.body(right)).abs())


class Spotter(nn.Module):
    """Depthwise-separable convolutions over a spectrogram (DS-CNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, (10, 4), (2, 2), (5, 1)), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            *(nn.Sequential(convolution(16, 16, 3, groups=16), convolution(16, 16, 1)) for _ in range(2))
        )
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def known(name: str, **settings) -> Architecture:  # type: ignore[no-untyped-def]
    """An entry of `tests/zoo.py`."""
    return Architecture(zoo.ZOO[name], **settings)


def pictures(side: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, side, side), torch.randn(2, 3, side, side)


OTHER: dict[str, Architecture] = {
    "resnet_padded": known("padded_resnet"),
    "resnext": known("resnext"),
    "densenet": known("densenet"),
    "shufflenet_v2": known("shufflenet"),
    "shufflenet_v1": known("grouped_shuffle"),
    "unet": known("unet", fast=True),
    "mobilenet_v3": known("gated"),
    "vision_transformer": known("vision_transformer", fast=True),
    "torch_encoder_layer": known("multi_head"),
    "llama_written": known("llama", fast=True),
    "llama_rms_norm": known("llama_rms_norm"),
    "lstm": known("lstm", fast=True),
    "bidirectional_lstm": known("bidirectional_lstm"),
    "gru": known("gru"),
    "gan_generator": known("generator"),
    "video_convolutions": known("volume"),
    "gated_wave": known("wave"),
    "super_resolution": known("super_resolution"),
    "mlp_mixer": known("mixer"),
    "tcn": Architecture(lambda: (Temporal(), (torch.randn(2, 3, 24),))),
    "wavenet": Architecture(lambda: (Waves(), (torch.randn(2, 1, 32),))),
    "crnn": Architecture(lambda: (Readers(), (torch.randn(2, 1, 16, 24),))),
    "gru_attention": Architecture(lambda: (Attended(), ids())),
    "two_towers": Architecture(
        lambda: (TwoTowers(), (torch.randint(0, 40, (2,)), torch.randint(0, 60, (2,)))), fast=True
    ),
    "deep_fm": Architecture(lambda: (Factors(), (torch.randint(0, 60, (2, 5)),))),
    "dlrm": Architecture(lambda: (Crossed(), (torch.randn(2, 6), torch.randint(0, 30, (2, 3))))),
    "deep_cross": Architecture(lambda: (CrossNet(), (torch.randint(0, 60, (2, 5)),))),
    "graph_convolution": Architecture(lambda: (GraphConvolution(), (torch.randn(2, 7, 6), torch.rand(2, 7, 7)))),
    "pointnet": Architecture(lambda: (Points(), (torch.randn(2, 3, 20),))),
    "highway": Architecture(lambda: (Gates(), (torch.randn(2, 8),))),
    "perceiver": Architecture(lambda: (Latents(), (torch.randn(2, 11, 10),))),
    "conformer": Architecture(lambda: (Conformer(), (torch.randn(2, 13, 10),))),
    "siamese": Architecture(lambda: (Siamese(), pictures())),
    "keyword_spotting": Architecture(lambda: (Spotter(), (torch.randn(2, 1, 49, 10),))),
}
