"""Small hand-written architectures, one per way in which axes can depend on each other.

Every entry of `ZOO` is a function without arguments that returns `(module, example)`, seeded, in eval mode, with norms that do
something.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.graph.model import Model, capture

Built = tuple[nn.Module, tuple[Tensor, ...]]


def convolution(c: int, r: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(c, r, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(r), nn.ReLU()
    )


def image(channels: int = 3, side: int = 16) -> tuple[Tensor]:
    return (torch.randn(2, channels, side, side),)


class Padded(nn.Module):
    """A basic block whose shortcut is a strided slice padded with zero channels (CIFAR ResNet, option A)."""

    def __init__(self, c: int, r: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, r, 3, stride, 1, bias=False), nn.BatchNorm2d(r)
        self.conv2, self.bn2 = nn.Conv2d(r, r, 3, 1, 1, bias=False), nn.BatchNorm2d(r)
        self.stride, self.pad = stride, (r - c) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


def padded_resnet() -> nn.Module:
    blocks = (Padded(8, 8, 1), Padded(8, 16, 2), Padded(16, 16, 1), Padded(16, 24, 2))
    return nn.Sequential(convolution(3, 8), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 with a projection (ResNeXt)."""

    def __init__(self, c: int, width: int, r: int, groups: int):
        super().__init__()
        self.body = nn.Sequential(convolution(c, width, 1), convolution(width, width, 3, groups=groups))
        self.last, self.project = nn.Conv2d(width, r, 1), nn.Conv2d(c, r, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.body(x)) + self.project(x))


def resnext() -> nn.Module:
    blocks = (Bottleneck(8, 16, 24, 4), Bottleneck(24, 24, 24, 4))
    return nn.Sequential(convolution(3, 8), *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5))


class Dense(nn.Module):
    """Every layer reads all earlier ones, concatenated (DenseNet)."""

    def __init__(self, c: int, growth: int, layers: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c + i * growth) for i in range(layers))
        self.layers = nn.ModuleList(nn.Conv2d(c + i * growth, growth, 3, 1, 1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return x


def densenet() -> nn.Module:
    return nn.Sequential(
        convolution(3, 8),
        Dense(8, 6, 3),
        convolution(26, 12, 1),
        nn.AvgPool2d(2),
        Dense(12, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


class Shuffle(nn.Module):
    """Half of the channels pass, half are convolved, and the two are shuffled (ShuffleNet V2)."""

    def __init__(self, c: int):
        super().__init__()
        half = c // 2
        self.branch = nn.Sequential(
            convolution(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.BatchNorm2d(half)
        )
        self.mix = convolution(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, 1)
        y = torch.cat([passed, self.mix(self.branch(changed))], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(
        convolution(3, 16), Shuffle(16), convolution(16, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    )


class GroupedShuffle(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle between them (ShuffleNet V1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 36, 1, groups=3), nn.Conv2d(36, 12, 1, groups=3)
        self.stem, self.head = convolution(3, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.first(self.stem(x))), 3)
        return self.head(F.relu(self.second(y)).mean((2, 3)))


class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolution and interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = convolution(3, 8), convolution(8, 12), convolution(12, 16)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 12, 2, 2), convolution(24, 12)
        self.join1, self.out = convolution(20, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up2(self.middle(F.max_pool2d(b, 2)))
        y = self.join2(torch.cat([y, b], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(self.join1(torch.cat([y, a], 1)))


class Gated(nn.Module):
    """Depthwise-separable block with squeeze and excitation (MobileNet V3)."""

    def __init__(self, c: int, hidden: int):
        super().__init__()
        self.expand, self.depth = convolution(c, hidden, 1), convolution(hidden, hidden, 3, groups=hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 6, 1), nn.Conv2d(6, hidden, 1)
        self.project, self.norm = nn.Conv2d(hidden, c, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.norm(self.project(y * gate))


def gated() -> nn.Module:
    return nn.Sequential(
        convolution(3, 8), Gated(8, 20), Gated(8, 16), nn.Hardswish(), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(8, 5)
    )


class SelfAttention(nn.Module):
    """One fused q-k-v matrix, as most vision transformers have it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.randn(1, 1, 24))
        self.position = nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(Encoder(24, 4, 40), Encoder(24, 4, 32))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.position
        return self.head(self.norm(self.blocks(y))[:, 0])


class MultiHead(nn.Module):
    """torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).mean(1))


class PlainAttention(nn.Module):
    """Attention written with matmul and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, 4, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / 2.0).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, 16)).mean(1)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Decoder(nn.Module):
    """Grouped-query attention with rotated halves, a gated MLP, RMS norms (Llama)."""

    def __init__(self, width: int, heads: int, shared: int, hidden: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        small = shared * self.size
        self.wq, self.wk = nn.Linear(width, width, bias=False), nn.Linear(width, small, bias=False)
        self.wv, self.wo = nn.Linear(width, small, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = norm(width), norm(width)

    def rotate(self, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = t.chunk(2, -1)
        return t * cos + torch.cat([-second, first], -1) * sin

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, length, width = x.shape
        h = self.norm1(x)
        q = self.rotate(self.wq(h).view(n, length, self.heads, self.size).transpose(1, 2), cos, sin)
        k = self.rotate(self.wk(h).view(n, length, self.shared, self.size).transpose(1, 2), cos, sin)
        v = self.wv(h).view(n, length, self.shared, self.size).transpose(1, 2)
        k, v = (self.repeated(t) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(n, length, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def repeated(self, t: Tensor) -> Tensor:
        n, shared, length, size = t.shape
        times = self.heads // shared
        return t[:, :, None].expand(n, shared, times, length, size).reshape(n, self.heads, length, size)


class Llama(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module] = RootMeanSquare, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.layers = nn.ModuleList(Decoder(width, heads, 2, 36, norm) for _ in range(2))
        self.norm, self.head = norm(width), nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight
        half = width // heads // 2
        angle = torch.outer(torch.arange(9.0), 1 / 100 ** (torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.head(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, cell: Callable[..., nn.Module], **settings: object):
        super().__init__()
        self.embed = nn.Embedding(30, 10)
        self.cell = cell(10, 12, batch_first=True, **settings)
        self.head = nn.Linear(24 if settings.get("bidirectional") else 12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(ids))[0].mean(1))


class Generator(nn.Module):
    """Latent vector to image: linear, reshape, transposed convolutions, group and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 16 * 4 * 4)
        self.up1, self.norm1 = nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.GroupNorm(4, 12)
        self.up2, self.norm2 = nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.InstanceNorm2d(8, affine=True)
        self.out = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(z).view(-1, 16, 4, 4), 0.2)
        x = F.relu(self.norm1(self.up1(x)))
        return torch.tanh(self.out(F.relu(self.norm2(self.up2(x)))))


class TwoInputs(nn.Module):
    """Two inputs, three outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.joint = nn.Linear(8, 14), nn.Linear(6, 14), nn.Linear(14, 10)
        self.mean, self.spread = nn.Linear(10, 3), nn.Linear(10, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        h = F.elu(self.joint(torch.tanh(self.left(a)) * torch.tanh(self.right(b))))
        return {"mean": self.mean(h), "spread": F.softplus(self.spread(h)), "both": self.mean(h) + self.spread(h)}


class Volume(nn.Module):
    """3-d convolutions and pooling over a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(2, 8, 3, 1, 1), nn.BatchNorm3d(8)
        self.second, self.head = nn.Conv3d(8, 10, 3, 2, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool3d(F.relu(self.norm(self.first(x))), 2)
        return self.head(F.adaptive_avg_pool3d(F.relu(self.second(y)), 1).flatten(1))


class Wave(nn.Module):
    """1-d convolutions with a gated unit, dilated (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 5, 2)
        self.gated = nn.ModuleList(nn.Conv1d(8, 24, 3, dilation=d, padding=d) for d in (1, 2))
        self.back = nn.ModuleList(nn.Conv1d(12, 8, 1) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for gated, back in zip(self.gated, self.back, strict=True):
            y = y + back(F.glu(gated(y), 1))
        return self.head(y.amax(2))


class SuperResolution(nn.Module):
    """Sub-pixel upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 24, 3, 1, 1)
        self.third = nn.Conv2d(6, 4, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(F.prelu(self.second(torch.relu(self.first(x))), torch.tensor(0.1)))
        return self.shuffle(self.third(torch.relu(y)))


class Mixer(nn.Module):
    """Mixing over tokens and over channels (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.tokens1, self.tokens2 = nn.Linear(16, 20), nn.Linear(20, 16)
        self.channels1, self.channels2 = nn.Linear(16, 28), nn.Linear(28, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2)
        y = y + self.tokens2(F.gelu(self.tokens1(y)))
        y = y.transpose(1, 2)
        y = y + self.channels2(F.gelu(self.channels1(y)))
        return self.head(y.mean(1))


class Einsums(nn.Module):
    """A matrix product, a pairwise product and a gated one, all written as einsum."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(6, 10), nn.Parameter(torch.randn(12, 10) / 3)
        self.left, self.right, self.last = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("blc,rc->blr", F.relu(self.first(x)), self.weight)
        pairs = torch.einsum("bld,bmd->blm", self.left(h), self.right(h)).softmax(-1)
        return self.last(torch.einsum("blm,bmr->blr", pairs, h) + h)


class WeightNorms(nn.Module):
    """Convolutions whose weights are a direction and a length."""

    def __init__(self):
        super().__init__()
        made = (nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 12, 3, padding=1), nn.Conv1d(12, 3, 1))
        self.layers = nn.ModuleList(nn.utils.parametrizations.weight_norm(each) for each in made)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x))
        return self.layers[-1](x)


class Overwritten(nn.Module):
    """Some positions are written over."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(2, 8, 1)
        self.last = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = F.relu(self.first(x)).clone(), F.relu(self.other(x))
        y[:, :, :5] = z[:, :, 5:10]
        return self.last(y)


class Patches(nn.Module):
    """Patches are unfolded, mixed, and folded back (MobileViTv2)."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        rows = F.unfold(y, 2, stride=2).unflatten(1, (8, 4))
        mixed = F.relu(self.mix(rows)).flatten(1, 2)
        return self.last(F.fold(mixed, x.shape[-2:], 2, stride=2))


class Sorted(nn.Module):
    """An operator without a rule in the middle: everything that touches it must be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(4, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        best = self.first(x).topk(4, -1).values
        return self.third(torch.relu(self.second(best)))


class Sigmoids(nn.Module):
    """Zeroed channels that are not zero behind a sigmoid, and are then summed over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.first(x)).mean(-1, keepdim=True)
        return self.head(torch.relu(self.second(x)) * weight)


ZOO: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "padded_resnet": lambda: (padded_resnet(), image()),
    "resnext": lambda: (resnext(), image()),
    "densenet": lambda: (densenet(), image()),
    "shufflenet": lambda: (shufflenet(), image()),
    "grouped_shuffle": lambda: (GroupedShuffle(), image()),
    "unet": lambda: (UNet(), image()),
    "gated": lambda: (gated(), image()),
    "vision_transformer": lambda: (VisionTransformer(), image()),
    "multi_head": lambda: (MultiHead(), (torch.randn(2, 7, 16),)),
    "plain_attention": lambda: (PlainAttention(), (torch.randn(2, 7, 16),)),
    "llama": lambda: (Llama(), (torch.randint(0, 40, (2, 9)),)),
    "llama_rms_norm": lambda: (Llama(nn.RMSNorm), (torch.randint(0, 40, (2, 9)),)),
    "lstm": lambda: (Recurrent(nn.LSTM, num_layers=2), (torch.randint(0, 30, (2, 7)),)),
    "bidirectional_lstm": lambda: (Recurrent(nn.LSTM, bidirectional=True), (torch.randint(0, 30, (2, 7)),)),
    "gru": lambda: (Recurrent(nn.GRU), (torch.randint(0, 30, (2, 7)),)),
    "generator": lambda: (Generator(), (torch.randn(2, 10),)),
    "two_inputs": lambda: (TwoInputs(), (torch.randn(2, 8), torch.randn(2, 6))),
    "volume": lambda: (Volume(), (torch.randn(2, 2, 6, 8, 8),)),
    "wave": lambda: (Wave(), (torch.randn(2, 1, 40),)),
    "super_resolution": lambda: (SuperResolution(), image(1, 8)),
    "mixer": lambda: (Mixer(), image()),
    "einsums": lambda: (Einsums(), (torch.randn(2, 5, 6),)),
    "weight_norms": lambda: (WeightNorms(), (torch.randn(2, 2, 20),)),
    "overwritten": lambda: (Overwritten(), (torch.randn(2, 2, 12),)),
    "patches": lambda: (Patches(), image(3, 8)),
    "sorted": lambda: (Sorted(), (torch.randn(2, 6),)),
    "sigmoids": lambda: (Sigmoids(), (torch.randn(2, 6),)),
}


@cache
def captured(name: str) -> Model:
    """The architecture called `name`, captured; treat it as a value."""
    return capture(*build(name))


def batch(model: Model, size: int) -> list[Tensor]:
    """Flat random inputs of another batch size, the same every time."""
    torch.manual_seed(size)
    return [
        torch.randn(size, *t.shape[1:])
        if t.is_floating_point()
        else torch.randint(0, int(t.max()) + 1, (size, *t.shape[1:]))
        for t in model.example
    ]


def build(name: str) -> Built:
    """The architecture called `name`, the same every time."""
    torch.manual_seed(0)
    module, example = ZOO[name]()
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0, 0.1)
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    return module.eval(), example
