"""A small residual network on scans of handwritten digits: trained here in seconds, then compressed."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.inputs.job import Progress, quiet
from tersor.pipeline import compress
from tersor.report import Report

EPOCHS = 12
BATCH = 16  # images at a time: of one, most of the time goes into starting operators


class Block(nn.Module):
    """Two convolutions with norms, added to their input, or to a 1x1 convolution of it where the width changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class Digits(nn.Module):
    """Digits of 8x8 pixels, (batch, 1, 8, 8) in [0, 1], to 10 logits."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.classes = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def demo(out: Path, seed: int = 0, progress: Progress = quiet) -> Report:
    """Train, compress under a drop of one point, and give the report. The scans that judge were never trained on."""
    (x, y), (x_test, y_test) = scans(seed)
    model = trained(x, y, seed, progress)
    return compress(
        (model, x[:2]),
        [(x, y)],
        eval_data=[(x_test, y_test)],
        max_drop=0.01,
        batch=BATCH,
        seed=seed,
        out=out,
        progress=progress,
    )


def scans(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images, labels) to train and to judge: two thirds and one third of scikit-learn's 1,797 scans, shuffled."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as cause:
        raise InputError(
            "The demo's images come with scikit-learn, which is not installed; pip install tersor[demo]."
        ) from cause
    found = load_digits()
    images = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.as_tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    return (images[train], labels[train]), (images[test], labels[test])


def trained(x: Tensor, y: Tensor, seed: int, progress: Progress = quiet) -> Digits:
    """The network after `EPOCHS` epochs of Adam with shifted images; the same for the same seed and threads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Digits()
        steps = EPOCHS * -(-len(x) // 64)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
        for epoch in range(EPOCHS):
            progress("training the demo's network", epoch, EPOCHS)
            for batch in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(_shifted(x[batch])), y[batch], label_smoothing=0.05).backward()
                optimiser.step()
                schedule.step()
    return model.eval()


def _shifted(x: Tensor) -> Tensor:
    """The images, moved by up to one pixel each way."""
    down, right = (int(n) for n in torch.randint(0, 3, (2,)))
    return F.pad(x, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]
