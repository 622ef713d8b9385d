"""Weights and activations in few bits, one-shot: Tersor beside plain rounding and the quantisers in use today.

    python -m benchmarks.quantization                                        # four networks, one JSON line each
    python -m benchmarks.quantization --models resnet20 --part held --seeds 0 --settings W4A4,W2A8

Everybody sees the same calibration images: `--images` of the search part, drawn anew for each seed. No training, no labels.
The first and the last matrix, and the images, have 8 bits. W8A8 is judged on the exported file in ONNX Runtime and in
OpenVINO, as are the peers'. Fewer bits are what `tersor.quantize` makes, grids simulated in float (no runtime here computes in
them), as is plain rounding: weights to the grid that reaches the largest value of each row, activations to their extremes.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.ours import predict
from benchmarks.peers import QUANTISERS
from tersor import calibrated
from tersor.calibrated import PROFILE_ITEMS, QUANTISING_ITEMS
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.maths.grid import Integers, PerChannel, absmax
from tersor.maths.ranges import minmax
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.measuring.machine import weight_bits
from tersor.profile import Profile
from tersor.rewrites.fold_norms import fold_norms
from tersor.rewrites.store_quantised import store_quantised
from tersor.site import matrices, sites
from tersor.target import Compressed, Grid
from tersor.targets import target_called
from tersor.techniques.gptq import GPTQ

RESULTS = environment.ROOT / "benchmarks" / "results" / "quantization.jsonl"
SETTINGS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8), "W1A8": (1, 8)}
WANTED = {
    "resnet20": {"W8A8": -0.2, "W4A8": -0.4, "W4A4": -2.0, "W3A8": -1.0, "W2A8": -4.5},
    "mobilenet_v1_075": {"W8A8": -0.4},
}
RUNTIMES = ("onnxruntime", "openvino")
Hits = np.ndarray
Predict = Callable[[np.ndarray], np.ndarray]
Judge = Callable[[Predict], Hits]


def prepared(key: str, images: Tensor, seed: int) -> tuple[Model, Profile]:
    """The folded and equalised network, and what was measured of it."""
    batches = [(x,) for x in images[:PROFILE_ITEMS].split(64)]
    return calibrated.prepared(fold_norms(capture(zoo.module(key), (images[:2],))), batches, seed)


def int8(model: Model, profile: Profile, images: Tensor, seed: int) -> Compressed:
    """What `compress` makes of a plan of int8 everywhere, in the bits of weights that this processor wants."""
    techniques = {m.name: GPTQ(weight_bits()) for m in matrices(model)}
    batches = [(x,) for x in images[:QUANTISING_ITEMS].split(64)]
    return fit(model, batches, profile, Decisions(techniques=techniques, feeds="static"), seed=seed)


def quantized(key: str, images: Tensor, weights: int, activations: int, threads: int, seed: int) -> Any:
    """What the command makes, all images being its data."""
    found: Any = tersor.quantize(
        zoo.module(key),
        [(x,) for x in images.split(64)],
        weights=weights,
        activations=activations,
        metric="agreement",
        threads=threads,
        seed=seed,
    )
    return found.module


def plain(model: Model, profile: Profile, weights: int, activations: int) -> Compressed:
    """Rounding to nearest, without a search for anything, of weights and of what matrices read."""
    found = matrices(model)
    rounded = model.copy()
    for matrix in found:
        bits = 8 if matrix in (found[0], found[-1]) else weights
        rows = to_matrix(model.tensor(matrix.weight), matrix.groups, matrix.transposed)
        grid = absmax(rows.flatten(0, 1), Integers(bits, True, PerChannel()))
        value = grid.round(rows.flatten(0, 1)).reshape(rows.shape)
        rounded.assign(matrix.weight, from_matrix(value, matrix.shape, matrix.groups, matrix.transposed).float())
    feeds = {}
    for name in (site.activation for site in sites(rounded)):
        seen, bits = profile.ranges[name], 8 if name in rounded.inputs else activations
        feeds[name] = Grid(*minmax(seen.counts, seen.edges, seen.low, seen.high, bits), 0, 2**bits - 1)
    return Compressed(rounded, {}, feeds)


def in_parts(module: Callable[[Tensor], Tensor]) -> Predict:
    """Logits, a hundred items at a time."""

    @torch.no_grad()
    def logits(inputs: np.ndarray) -> np.ndarray:
        parts = [torch.from_numpy(np.array(inputs[i : i + 100])) for i in range(0, len(inputs), 100)]
        return np.concatenate([module(x).numpy() for x in parts])

    return logits


def exported(compressed: Compressed, runtime: str, threads: int) -> Predict:
    """Logits of the file, in its runtime."""

    def logits(inputs: np.ndarray) -> np.ndarray:
        with TemporaryDirectory() as folder:
            target = target_called(runtime, "int8")
            target.export(compressed, Path(folder))
            return predict(target.load(Path(folder), threads), inputs)

    return logits


def peer(key: str, name: str, images: np.ndarray) -> tuple[Predict, float]:
    """Logits of a peer's int8 file in its runtime, and the seconds it took to make."""
    _, prepare, predicted = QUANTISERS[name]
    folder = zoo.cache_folder() / "quantization" / key / name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    prepare(key, folder, images)
    return lambda inputs: predicted(key, folder, inputs), time.perf_counter() - begin


def our_rows(key: str, judge: Judge, images: Tensor, given: argparse.Namespace, seed: int) -> list[tuple[dict, Hits]]:
    """Ours and plain rounding in every setting, for one seed's images."""
    begin = time.perf_counter()
    model, profile = prepared(key, images, seed)
    measuring = time.perf_counter() - begin
    rows = []
    for setting in given.settings.split(","):
        weights, activations = SETTINGS[setting]
        begin = time.perf_counter()
        if setting == "W8A8":
            made = int8(model, profile, images, seed)
            seconds = measuring + time.perf_counter() - begin
            ways = [("Tersor", r, exported(made, r, given.threads), seconds) for r in RUNTIMES]
        else:
            module = quantized(key, images, weights, activations, given.threads, seed)
            ways = [("Tersor", f"simulated {setting}", in_parts(module), time.perf_counter() - begin)]
        rounded = store_quantised(plain(model, profile, weights, activations)).module
        ways.append(("plain rounding", f"simulated {setting}", in_parts(rounded), measuring))
        for tool, where, logits, spent in ways:
            hits = judge(logits)
            row = {"setting": setting, "tool": tool, "where": where, "seed": seed, "accuracy": _percent(hits)}
            rows.append((row | {"seconds": round(spent, 1)}, hits))
            print(rows[-1][0], flush=True)
    return rows


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one model."""
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "models")}
    line = environment.record(benchmark="quantization", model=key, weight_bits_of_w8=weight_bits(), **settings)
    everything, _ = zoo.part(key, "search")
    inputs, labels = zoo.part(key, given.part)

    def judge(logits: Predict) -> Hits:
        return logits(inputs).argmax(1) == labels

    before = judge(in_parts(zoo.module(key)))
    rows: list[tuple[dict, Hits]] = []
    for seed in map(int, given.seeds.split(",")):
        order = np.random.default_rng(seed).permutation(len(everything))[: given.images]
        images = np.array(everything[np.sort(order)])
        rows += our_rows(key, judge, torch.from_numpy(images), given, seed)
        for name in QUANTISERS if given.peers and "W8A8" in given.settings else ():
            logits, seconds = peer(key, name, images)
            hits = judge(logits)
            row = {
                "setting": "W8A8",
                "tool": QUANTISERS[name][0],
                "where": name,
                "seed": seed,
                "accuracy": _percent(hits),
            }
            rows.append((row | {"seconds": round(seconds, 1)}, hits))
            print(rows[-1][0], flush=True)
    line |= {
        "original": _percent(before),
        "items": len(labels),
        "rows": [_finished(row, hits, before) for row, hits in rows],
    }
    line["means"] = _means(key, rows, before)
    print(line["means"], flush=True)
    return line | {"load_after": list(os.getloadavg())}


def _finished(row: dict, hits: Hits, before: Hits) -> dict:
    return row | {"to_original": figures.paired(hits, before)}


def _means(key: str, rows: Sequence[tuple[dict, Hits]], before: Hits) -> list[dict]:
    """By setting, tool and runtime, the mean over seeds, beside what was wanted."""
    groups: dict[tuple[str, str, str], list[Hits]] = {}
    for row, hits in rows:
        groups.setdefault((row["setting"], row["tool"], row["where"]), []).append(hits)
    found = []
    for (setting, tool, where), several in groups.items():
        lost = float(np.mean([100 * (hits.mean() - before.mean()) for hits in several]))
        wanted = WANTED.get(key, {}).get(setting) if tool == "Tersor" else None
        found.append(
            {"setting": setting, "tool": tool, "where": where, "to_original": round(lost, 2), "wanted": wanted}
        )
    return found


def _percent(hits: Hits) -> float:
    return round(100 * float(hits.mean()), 2)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the rows, append one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(zoo.CASES), help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="of " + ", ".join(SETTINGS))
    parser.add_argument("--images", type=int, default=1024, help="calibration images")
    parser.add_argument("--seeds", default="0,1,2", help="of the draw of calibration images")
    parser.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for key in given.models.split(","):
        environment.append(given.out, run(key, given))


if __name__ == "__main__":
    main()
