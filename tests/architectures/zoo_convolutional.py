"""Convolutional networks written here in a few lines each: classifiers, detectors, segmenters, generators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from architecture import Architecture, images
from torch import Tensor, nn
from zoo import convolution


def classifier(body: nn.Module, width: int, classes: int = 5) -> nn.Sequential:
    """A body, global pooling, a linear layer."""
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def alexnet() -> nn.Module:
    pool, drop = nn.MaxPool2d(2), nn.Dropout()
    body = (nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), pool, nn.Conv2d(16, 24, 5, 1, 2), nn.ReLU(), pool)
    more = (nn.Conv2d(24, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 24, 3, 1, 1), nn.ReLU(), pool, nn.Flatten())
    return nn.Sequential(
        *body, *more, drop, nn.Linear(96, 40), nn.ReLU(), drop, nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)
    )


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for step in (8, 8, 0, 16, 16, 0, 24, 24, 0):
        layers += [convolution(width, step)] if step else [nn.MaxPool2d(2)]
        width = step or width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 32), nn.ReLU(), nn.Linear(32, 5))


class Residual(nn.Module):
    """Two or three convolutions, an optional gate, a projected shortcut."""

    def __init__(self, c: int, r: int, stride: int = 1, gate: nn.Module | None = None):
        super().__init__()
        self.first, self.second = convolution(c, r, 3, stride), nn.Conv2d(r, r, 3, 1, 1, bias=False)
        self.norm, self.gate = nn.BatchNorm2d(r), gate or nn.Identity()
        self.short = nn.Conv2d(c, r, 1, stride) if c != r or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gate(self.norm(self.second(self.first(x)))) + self.short(x))


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, c: int):
        super().__init__()
        self.down, self.up = nn.Linear(c, 6), nn.Linear(6, c)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


class BlockAttention(nn.Module):
    """Attention over channels, from mean and maximum, then over places (CBAM)."""

    def __init__(self, c: int):
        super().__init__()
        self.down, self.up, self.places = nn.Conv2d(c, 6, 1), nn.Conv2d(6, c, 1), nn.Conv2d(1, 1, 5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = [self.up(F.relu(self.down(pool(x, 1)))) for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)]
        x = x * torch.sigmoid(both[0] + both[1])
        return x * torch.sigmoid(self.places(x.mean(1, keepdim=True)))


def residual_net(gate: type[nn.Module] | None = None) -> nn.Module:
    make = gate or (lambda c: None)
    blocks = (Residual(8, 8, 1, make(8)), Residual(8, 16, 2, make(16)), Residual(16, 16, 1, make(16)))
    return classifier(nn.Sequential(convolution(3, 8), *blocks), 16)


class PreActivated(nn.Module):
    """Norm and ReLU before every convolution (ResNet v2)."""

    def __init__(self, c: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 12, 3, 1, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(12), nn.Conv2d(12, c, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


def wide_resnet() -> nn.Module:
    return classifier(nn.Sequential(convolution(3, 16), PreActivated(16), PreActivated(16), nn.BatchNorm2d(16)), 16)


class Fire(nn.Module):
    def __init__(self, c: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(c, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(y)), F.relu(self.three(y))], 1)


def squeezenet() -> nn.Module:
    body = (nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(2), Fire(16, 6, 8), Fire(16, 6, 12), nn.MaxPool2d(2))
    return nn.Sequential(*body, Fire(24, 8, 12), nn.Conv2d(24, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Inception(nn.Module):
    """Four branches side by side (GoogLeNet), 5x5 as two 3x3 or as 1x5 and 5x1."""

    def __init__(self, c: int, factorised: bool = False):
        super().__init__()
        self.one, self.three = convolution(c, 8, 1), nn.Sequential(convolution(c, 6, 1), convolution(6, 10))
        five = (nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 6, (5, 1), padding=(2, 0)), nn.ReLU())
        self.five = nn.Sequential(
            convolution(c, 4, 1), *(five if factorised else (convolution(4, 6), convolution(6, 6)))
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(c, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


def googlenet(factorised: bool = False) -> nn.Module:
    blocks = (Inception(12, factorised), nn.MaxPool2d(2), Inception(28, factorised))
    return classifier(nn.Sequential(convolution(3, 12, 3, 2), *blocks), 28)


class Separable(nn.Module):
    """Depthwise, then pointwise, around a shortcut (Xception)."""

    def __init__(self, c: int, r: int):
        super().__init__()
        self.depth1, self.point1, self.norm1 = nn.Conv2d(c, c, 3, 1, 1, groups=c), nn.Conv2d(c, r, 1), nn.BatchNorm2d(r)
        self.depth2, self.point2, self.norm2 = nn.Conv2d(r, r, 3, 1, 1, groups=r), nn.Conv2d(r, r, 1), nn.BatchNorm2d(r)
        self.short = nn.Conv2d(c, r, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.point1(self.depth1(x))))
        return F.max_pool2d(self.norm2(self.point2(self.depth2(y))), 3, 2, 1) + self.short(x)


def xception() -> nn.Module:
    return classifier(nn.Sequential(convolution(3, 8), Separable(8, 16), Separable(16, 24)), 24)


class Ghost(nn.Module):
    """Half of the channels are cheap copies of the other half (GhostNet)."""

    def __init__(self, c: int, r: int):
        super().__init__()
        self.primary, self.cheap = convolution(c, r // 2, 1), convolution(r // 2, r // 2, 3, groups=r // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)


def ghostnet() -> nn.Module:
    return classifier(nn.Sequential(convolution(3, 8, 3, 2), Ghost(8, 16), Ghost(16, 24), convolution(24, 16, 1)), 16)


class Branches(nn.Module):
    """3x3, 1x1 and identity, each with a norm, added (RepVGG)."""

    def __init__(self, c: int):
        super().__init__()
        self.three, self.one = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.Conv2d(c, c, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.three(x)) + self.norms[1](self.one(x)) + self.norms[2](x))


def repvgg() -> nn.Module:
    return classifier(nn.Sequential(convolution(3, 12, 3, 2), Branches(12), convolution(12, 16), Branches(16)), 16)


class Mixing(nn.Module):
    """A large depthwise convolution around a shortcut, then a pointwise one (ConvMixer)."""

    def __init__(self, c: int):
        super().__init__()
        self.depth, self.norm1 = nn.Conv2d(c, c, 5, 1, 2, groups=c), nn.BatchNorm2d(c)
        self.point, self.norm2 = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(F.gelu(self.depth(x)))
        return self.norm2(F.gelu(self.point(x)))


def convmixer() -> nn.Module:
    return classifier(nn.Sequential(nn.Conv2d(3, 20, 4, 4), nn.GELU(), nn.BatchNorm2d(20), Mixing(20), Mixing(20)), 20)


def network_in_network() -> nn.Module:
    body = (convolution(3, 12, 5), convolution(12, 10, 1), convolution(10, 10, 1), nn.MaxPool2d(2))
    return nn.Sequential(*body, convolution(10, 16), nn.Conv2d(16, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Selective(nn.Module):
    """Two kernels whose mixture is chosen per channel by a softmax (SKNet)."""

    def __init__(self, c: int, r: int):
        super().__init__()
        self.small, self.large = convolution(c, r), convolution(c, r, 5)
        self.down, self.up = nn.Linear(r, 6), nn.ModuleList(nn.Linear(6, r) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.small(x), self.large(x)], 1)
        hidden = F.relu(self.down(both.sum(1).mean((2, 3))))
        gates = torch.stack([up(hidden) for up in self.up], 1).softmax(1)
        return (both * gates[..., None, None]).sum(1)


def sknet() -> nn.Module:
    return classifier(nn.Sequential(convolution(3, 8, 3, 2), Selective(8, 12), Selective(12, 16)), 16)


class Resolutions(nn.Module):
    """Two resolutions side by side that exchange what they found (HRNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fall = convolution(3, 8), convolution(8, 12, 3, 2)
        self.high, self.low = Residual(8, 8), Residual(12, 12)
        self.up, self.down = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.low(self.fall(high))
        high = self.high(high)
        mixed = high + F.interpolate(self.up(low), scale_factor=2)
        low = low + self.down(high)
        return self.head(torch.cat([mixed.mean((2, 3)), low.mean((2, 3))], 1))


class Pyramid(nn.Module):
    """Three levels, top-down, with heads shared by all levels (FPN, RetinaNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([convolution(3, 8, 3, 2), convolution(8, 12, 3, 2), convolution(12, 16, 3, 2)])
        self.sides = nn.ModuleList(nn.Conv2d(c, 10, 1) for c in (8, 12, 16))
        self.smooth, self.tower = nn.Conv2d(10, 10, 3, 1, 1), convolution(10, 14)
        self.classes, self.boxes = nn.Conv2d(14, 3, 3, 1, 1), nn.Conv2d(14, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top, found = None, []
        for side, level in zip(reversed(self.sides), reversed(levels), strict=True):
            top = side(level) if top is None else side(level) + F.interpolate(top, scale_factor=2)
            y = self.tower(self.smooth(top))
            found.append(torch.cat([self.classes(y), self.boxes(y)], 1).flatten(2))
        return torch.cat(found, 2)


class CrossStage(nn.Module):
    """Half of the channels go round the block (CSP)."""

    def __init__(self, c: int):
        super().__init__()
        self.first, self.second, self.last = convolution(c, 8, 1), convolution(c, 8, 1), convolution(16, c, 1)
        self.inner = nn.Sequential(convolution(8, 8, 1), convolution(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.cat([y + self.inner(y), self.second(x)], 1))


class Detector(nn.Module):
    """CSP blocks, pooling pyramid, a path up, decoupled heads (YOLO)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 6, 2, 2), nn.BatchNorm2d(8), nn.SiLU())
        self.one, self.two = (
            nn.Sequential(convolution(8, 12, 3, 2), CrossStage(12)),
            nn.Sequential(convolution(12, 16, 3, 2), CrossStage(16)),
        )
        self.before, self.after = convolution(16, 8, 1), convolution(32, 12, 1)
        self.join = nn.Sequential(convolution(24, 12), CrossStage(12))
        self.box, self.object, self.kind = (nn.Sequential(convolution(12, 10), nn.Conv2d(10, n, 1)) for n in (4, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(self.stem(x))
        y = self.before(self.two(a))
        pools = [y]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        y = F.interpolate(self.after(torch.cat(pools, 1)), scale_factor=2)
        y = self.join(torch.cat([y, a], 1))
        found = torch.cat([self.box(y).exp(), self.object(y).sigmoid(), self.kind(y).sigmoid()], 1)
        return found.flatten(2).transpose(1, 2)


class Shots(nn.Module):
    """Heads on maps of two sizes, boxes flattened and joined (SSD)."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.more = (
            nn.Sequential(convolution(3, 8, 3, 2), convolution(8, 12, 3, 2)),
            convolution(12, 16, 3, 2),
        )
        self.heads = nn.ModuleList(nn.Conv2d(c, 14, 3, 1, 1) for c in (12, 16))

    def forward(self, x: Tensor) -> Tensor:
        a = self.base(x)
        maps = (a, self.more(a))
        parts = [
            head(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 7) for head, y in zip(self.heads, maps, strict=True)
        ]
        return torch.cat(parts, 1)


class Atrous(nn.Module):
    """Parallel dilated convolutions, image pooling, a skip from below (DeepLab v3+)."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = convolution(3, 8, 3, 2), convolution(8, 16, 3, 2)
        self.rates = nn.ModuleList(nn.Conv2d(16, 8, 3, 1, d, d) for d in (1, 2, 3))
        self.image, self.join = nn.Conv2d(16, 8, 1), convolution(32, 12, 1)
        self.skip, self.out = convolution(8, 6, 1), nn.Sequential(convolution(18, 12), nn.Conv2d(12, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        y = self.high(low)
        pooled = self.image(F.adaptive_avg_pool2d(y, 1)).expand(-1, -1, y.shape[2], y.shape[3])
        y = self.join(torch.cat([*(rate(y) for rate in self.rates), pooled], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(torch.cat([y, self.skip(low)], 1))


def discriminator() -> nn.Module:
    """Strided convolutions with leaky ReLU (DCGAN)."""
    body = (
        nn.Conv2d(3, 12, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(12, 20, 4, 2, 1),
        nn.BatchNorm2d(20),
        nn.LeakyReLU(0.2),
    )
    return nn.Sequential(*body, nn.Conv2d(20, 1, 8), nn.Flatten())


class Translator(nn.Module):
    """Instance norms, residual blocks, transposed convolutions (CycleGAN generator)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, 8, 7),
            nn.InstanceNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.InstanceNorm2d(16),
            nn.ReLU(),
        )
        self.block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(16, 16, 3), nn.InstanceNorm2d(16), nn.ReLU())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 7, 1, 3), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        return self.up(y + self.block(y))


def autoencoder() -> nn.Module:
    down = (
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 20),
    )
    up = (nn.Linear(20, 1024), nn.ReLU(), nn.Unflatten(1, (16, 8, 8)), nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.ReLU())
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Sigmoid())


class Variational(nn.Module):
    """Mean and spread of a latent vector, decoded from its mean and a fixed draw (VAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 24), nn.ReLU())
        self.mean, self.spread = nn.Linear(24, 6), nn.Linear(24, 6)
        self.decode = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 256), nn.Sigmoid())
        self.register_buffer("draw", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encode(x)
        return self.decode(self.mean(hidden) + (0.5 * self.spread(hidden)).exp() * self.draw)


class Denoiser(nn.Module):
    """Group norms, SiLU, a time embedding added to the channels, attention in the middle (diffusion U-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.stem, self.norm1, self.conv1, self.add1 = (
            nn.Conv2d(3, 16, 3, 1, 1),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.Linear(16, 16),
        )
        self.down, self.norm2, self.qkv, self.out = (
            nn.Conv2d(16, 24, 3, 2, 1),
            nn.GroupNorm(4, 24),
            nn.Conv2d(24, 72, 1),
            nn.Conv2d(24, 24, 1),
        )
        self.up, self.last, self.end = nn.Conv2d(24, 16, 3, 1, 1), nn.GroupNorm(8, 32), nn.Conv2d(32, 3, 3, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.stem(x)
        t = self.time(time)
        x = x + self.conv1(F.silu(self.norm1(x)) + self.add1(t)[:, :, None, None])
        y = self.down(x)
        n, c, h, w = y.shape
        q, k, v = self.qkv(self.norm2(y)).view(n, 3, 1, c, h * w).transpose(3, 4).unbind(1)
        y = y + self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, c, h, w))
        y = F.interpolate(self.up(y), scale_factor=2)
        return self.end(F.silu(self.last(torch.cat([x, y], 1))))


def plain(make, **known) -> Architecture:  # type: ignore[no-untyped-def]
    """A network of images of 32 x 32."""
    return Architecture(lambda: (make(), images()), **known)


CONVOLUTIONAL: dict[str, Architecture] = {
    "alexnet": plain(alexnet),
    "vgg": plain(vgg, fast=True),
    "resnet_projected": plain(residual_net),
    "se_resnet": plain(lambda: residual_net(Squeeze)),
    "cbam_resnet": plain(lambda: residual_net(BlockAttention)),
    "wide_resnet": plain(wide_resnet),
    "squeezenet": plain(squeezenet, fast=True),
    "googlenet": plain(googlenet, fast=True),
    "inception_v3": plain(lambda: googlenet(True)),
    "xception": plain(xception),
    "ghostnet": plain(ghostnet),
    "repvgg": plain(repvgg),
    "convmixer": plain(convmixer),
    "network_in_network": plain(network_in_network),
    "sknet": plain(sknet),
    "hrnet": plain(Resolutions),
    "feature_pyramid": plain(Pyramid),
    "yolo": plain(Detector, fast=True),
    "ssd": plain(Shots),
    "deeplab": plain(Atrous),
    "gan_discriminator": plain(discriminator),
    "cyclegan": plain(Translator),
    "autoencoder": plain(autoencoder, fast=True),
    "variational_autoencoder": Architecture(lambda: (Variational(), images(1, 16))),
    "diffusion_unet": Architecture(lambda: (Denoiser(), (*images(3, 16), torch.randn(2, 8))), fast=True),
}
