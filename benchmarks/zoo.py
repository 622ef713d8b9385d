"""The trained models of the benchmarks and their data, decoded once and then mapped from disk.

Every part of the data has one use, and `test` is read once, at the end:

    part         CIFAR-10             ImageNet sample, keyword spotting
    calibration  1,024 of train       the first 60 % of the even items    what a peer's quantizer sees
    search       4,096 of train       the first 60 % of the even items    what `tersor.compress` gets as data
    held         the next 2,000       the other 40 % of the even items    what it gets as eval_data
    test         test, 5,000          all odd items
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

PARTS = ("calibration", "search", "held", "test")
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One trained model: its data set and the shape of one input."""

    title: str
    data: str
    shape: tuple[int, ...]


CASES = {
    "kws_dscnn": Case("KWS DS-CNN", "kws", (1, 49, 10)),
    "resnet20": Case("ResNet-20", "cifar10", (3, 32, 32)),
    "resnet56": Case("ResNet-56", "cifar10", (3, 32, 32)),
    "mobilenet_v1_075": Case("MobileNetV1-0.75", "imagenet", (3, 224, 224)),
}


def data_folder() -> Path:
    """The folder of trained models and data: the variable TERSOR_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("TERSOR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (folder / "loaders.py").is_file():
        raise SystemExit(f"no models and data in {folder}: set TERSOR_DATA to the folder that holds loaders.py")
    return folder


def cache_folder() -> Path:
    """Where decoded data and files are kept between runs: TERSOR_BENCH_CACHE, else inside the system's temp folder."""
    folder = Path(os.environ.get("TERSOR_BENCH_CACHE") or Path(tempfile.gettempdir()) / "tersor-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def loaders() -> ModuleType:
    """The data folder's own module of loaders."""
    spec = importlib.util.spec_from_file_location("loaders", data_folder() / "loaders.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot import {data_folder() / 'loaders.py'}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["loaders"] = module
    spec.loader.exec_module(module)
    return module


def module(key: str) -> nn.Module:
    """The trained model in evaluation mode; it gives logits."""
    shared = loaders()
    match key:
        case "resnet20" | "resnet56":
            return shared.resnet_cifar(int(key[6:]))
        case "mobilenet_v1_075":
            return shared.mobilenet_v1_075()
        case "kws_dscnn":
            return shared.kws_dscnn()
    raise SystemExit(f"unknown model {key!r}; known are {', '.join(CASES)}")


def part(key: str, name: str) -> Arrays:
    """Float32 inputs (items, channels, ...) mapped from disk, and int64 labels, of one part of the model's data."""
    folder = cache_folder() / "data-2" / CASES[key].data
    if not (folder / "labels-test.npy").exists():  # the folder's name changes where the parts do
        _decode(CASES[key].data, folder)
    return np.load(folder / f"inputs-{name}.npy", mmap_mode="r"), np.load(folder / f"labels-{name}.npy")


def training(key: str) -> Arrays:
    """All that may be trained on: CIFAR-10's training images without `held`; elsewhere `search`."""
    if CASES[key].data != "cifar10":
        return part(key, "search")
    shared = loaders()
    images, labels = shared.cifar10("train")
    kept = np.r_[0:4096, 6096 : len(labels)]
    return shared.cifar_norm(images[kept]).numpy(), np.asarray(labels)[kept]


def sample(key: str, batch: int) -> np.ndarray:
    """A writable batch of real inputs for the clock."""
    return np.array(part(key, "calibration")[0][:batch])


def _decode(data: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = _cifar10() if data == "cifar10" else _halves(*(_imagenet() if data == "imagenet" else _kws()))
    for name in PARTS:  # `test` last: it marks the folder as complete
        inputs, labels = parts[name]
        np.save(folder / f"inputs-{name}.npy", np.ascontiguousarray(inputs, np.float32))
        np.save(folder / f"labels-{name}.npy", np.asarray(labels, np.int64))


def _cifar10() -> dict[str, Arrays]:
    shared = loaders()
    (train, train_labels), (test, test_labels) = shared.cifar10("train"), shared.cifar10("test")
    spans = {"calibration": slice(1024), "search": slice(4096), "held": slice(4096, 6096)}
    parts = {name: (shared.cifar_norm(train[s]).numpy(), train_labels[s]) for name, s in spans.items()}
    return parts | {"test": (shared.cifar_norm(test).numpy(), test_labels)}


def _imagenet() -> Arrays:
    items = [(image.numpy(), label) for image, label in loaders().imagenet_sample()]
    return np.stack([image for image, _ in items]), np.array([label for _, label in items])


def _kws() -> Arrays:
    inputs, labels = loaders().kws()
    return inputs.numpy(), labels.numpy()


def _halves(inputs: np.ndarray, labels: np.ndarray) -> dict[str, Arrays]:
    even, odd, cut = slice(0, None, 2), slice(1, None, 2), int(0.6 * ((len(labels) + 1) // 2))
    x, y = inputs[even], labels[even]
    return {
        "calibration": (x[:cut], y[:cut]),
        "search": (x[:cut], y[:cut]),
        "held": (x[cut:], y[cut:]),
        "test": (inputs[odd], labels[odd]),
    }
