"""Structured pruning of ResNet-56 at equal multiply-accumulates: Tersor's structured OBS beside torch-pruning.

    python -m benchmarks.pruning_resnet56 --ratios 2.1,2.6            # the table: test accuracy, one JSON line
    python -m benchmarks.pruning_resnet56 --part held --no-peers --images 256

One-shot, no training: at most 1,024 training images; Tersor sees no labels, torch-pruning's Taylor and Hessian criteria see
the true ones. Only the inner channels of the residual blocks are pruned, in both tools, and one counter counts for
both. torch-pruning is shown as it is and after its batch norms were re-estimated on the same images, local and global,
and its best row is chosen on the test images themselves.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import environment, zoo
from tersor.fitting import Decisions, fit
from tersor.graph.macs import macs
from tersor.graph.model import Model, capture
from tersor.profile import measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import Group, groups
from tersor.widths import allocate, curves

KEY = "resnet56"
WANTED = {2.1: 86.0, 2.6: 78.0}  # test accuracy in percent, by how many times fewer multiply-accumulates
LIMIT = 240.0  # seconds
RESULTS = environment.ROOT / "benchmarks" / "results" / "pruning_resnet56.jsonl"
IMPORTANCES = ("magnitude", "taylor", "hessian")
Predict = Callable[[Tensor], Tensor]


def pruned(module: nn.Module, images: Tensor, ratio: float, seed: int = 0) -> Model:
    """Ours: the module with `ratio` times fewer multiply-accumulates, from unlabelled images."""
    model = fold_norms(capture(module, (images[:2],)))
    batches = [(x,) for x in images.split(128)]
    profile = measure(model, batches, seed=seed)
    inner = inner_groups(model)
    keep = allocate(model, curves(model, profile, inner), inner, total_macs(model) / ratio)
    return fit(model, batches, profile, Decisions(keep=keep), seed=seed).model


def inner_groups(model: Model) -> list[Group]:
    """The channels between the two convolutions of each residual block."""
    return [g for g in groups(model) if g.refused is None and g.name.endswith(".conv1")]


def total_macs(model: Model) -> int:
    """Multiply-accumulates of all convolutions and linears, per image."""
    return sum(macs(model).values())


class Peer:
    """torch-pruning's one-shot pruner on the inner channels by one criterion, whose gradients are taken once."""

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor, importance: str):
        self.module, self.images = module, images
        self._scored = copy.deepcopy(module)
        self._scorer = _scorer(self._scored, images, labels, importance)
        self._macs = macs(capture(module, (images[:2],)))
        self._names = {id(m): name for name, m in self._scored.named_modules()}

    def pruned(self, ratio: float, everywhere: bool) -> nn.Module:
        """With `ratio` times fewer multiply-accumulates; `everywhere` compares scores across layers."""
        import torch_pruning as tp

        budget = sum(self._macs.values()) / ratio
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self._spent(self._gone(middle, everywhere)) > budget else (low, middle)
        network = copy.deepcopy(self.module)
        graph = tp.DependencyGraph().build_dependency(network, self.images[:2])
        for name, channels in self._gone(high, everywhere).items():
            layer = network.get_submodule(name)
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, channels).prune()
        return network.eval()

    def _gone(self, share: float, everywhere: bool) -> dict[str, list[int]]:
        """The channels that go at that pruning ratio, by layer."""
        gone: dict[str, list[int]] = {}
        for group in _steps(self._scored, self.images, self._scorer, share, everywhere):
            gone.setdefault(self._names[id(group[0].dep.target.module)], []).extend(group[0].idxs)
        return gone

    def _spent(self, gone: dict[str, list[int]]) -> float:
        saved = 0.0
        for name, channels in gone.items():
            both = self._macs[name] + self._macs[name.removesuffix("conv1") + "conv2"]
            saved += both * len(set(channels)) / self._scored.get_submodule(name).out_channels
        return sum(self._macs.values()) - saved


def _steps(network: nn.Module, images: Tensor, scorer: Any, share: float, everywhere: bool) -> list[Any]:
    """The groups that torch-pruning would remove at that pruning ratio, not yet removed."""
    import torch_pruning as tp

    inner = {id(m.conv1) for m in network.modules() if hasattr(m, "conv1") and hasattr(m, "conv2")}
    ignored = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) not in inner]
    pruner = tp.pruner.BasePruner(
        network,
        images[:2],
        importance=scorer,
        global_pruning=everywhere,
        pruning_ratio=share,
        max_pruning_ratio=0.95,
        ignored_layers=ignored,
    )
    return list(pruner.step(interactive=True))


def _scorer(network: nn.Module, images: Tensor, labels: Tensor, importance: str) -> Any:
    import torch_pruning as tp

    if importance == "magnitude":
        return tp.importance.GroupMagnitudeImportance(p=2)
    network.zero_grad()
    if importance == "taylor":
        for x, y in zip(images.split(128), labels.split(128), strict=True):
            F.cross_entropy(network(x), y, reduction="sum").div(len(images)).backward()
        return tp.importance.GroupTaylorImportance()
    scorer = tp.importance.GroupHessianImportance()
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        scorer.accumulate_grad(network)
    return scorer


@torch.no_grad()
def reestimated(module: nn.Module, images: Tensor) -> nn.Module:
    """The same network, its batch norms' statistics measured again on `images`."""
    network = copy.deepcopy(module)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain mean over batches
    network.train()
    for x in images.split(128):
        network(x)
    return network.eval()


@torch.no_grad()
def accuracy(predict: Predict, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    hits = 0
    for start in range(0, len(labels), 250):
        part = torch.from_numpy(np.array(images[start : start + 250]))
        hits += int((predict(part).argmax(1).numpy() == labels[start : start + 250]).sum())
    return round(100 * hits / len(labels), 2)


def our_row(module: nn.Module, images: Tensor, ratio: float, judge: Callable[[Predict], float], seed: int) -> dict:
    """Our figures at one ratio."""
    start, cpu = time.perf_counter(), time.process_time()
    small = pruned(module, images, ratio, seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    whole = total_macs(capture(module, (images[:2],)))
    return {
        "tool": "tersor",
        "method": "structured OBS",
        "asked": ratio,
        "macs_ratio": round(whole / total_macs(small), 4),
        "accuracy": judge(lambda x: small.run(x)[0]),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
    }


def peer_rows(
    module: nn.Module, images: Tensor, labels: Tensor, ratios: Sequence[float], judge: Callable[[Predict], float]
) -> list[dict]:
    """torch-pruning's figures: every criterion, local and global, without and with re-estimated norms."""
    rows = []
    whole = total_macs(capture(module, (images[:2],)))
    for importance in IMPORTANCES:
        start = time.perf_counter()
        peer = Peer(module, images, labels, importance)
        scoring = time.perf_counter() - start
        for ratio in ratios:
            for everywhere in (False, True):
                start = time.perf_counter()
                network = peer.pruned(ratio, everywhere)
                rows.append(
                    {
                        "tool": "torch-pruning",
                        "method": f"{importance}, {'global' if everywhere else 'local'}",
                        "asked": ratio,
                        "macs_ratio": round(whole / total_macs(capture(network, (images[:2],))), 4),
                        "seconds": round(scoring + time.perf_counter() - start, 1),
                        "accuracy": judge(network),
                        "accuracy_norms_reestimated": judge(reestimated(network, images)),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", default="2.1,2.6", help="times fewer multiply-accumulates, separated by commas")
    parser.add_argument("--images", type=int, default=1024, help="training images")
    parser.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    line = environment.record(benchmark="pruning_resnet56", **{k: v for k, v in vars(given).items() if k != "out"})
    module = zoo.module(KEY)
    found, targets = zoo.part(KEY, "search")
    images, labels = torch.from_numpy(np.array(found[: given.images])), torch.from_numpy(targets[: given.images])
    judged = zoo.part(KEY, given.part)

    def judge(predict: Predict) -> float:
        return accuracy(predict, *judged)

    line["original"] = judge(module)
    ratios = [float(ratio) for ratio in given.ratios.split(",")]
    line["rows"] = []
    for ratio in ratios:
        line["rows"].append(our_row(module, images, ratio, judge, given.seed))
        print(line["rows"][-1], flush=True)
    if given.peers:
        line["rows"] += peer_rows(module, images, labels, ratios, judge)
    line["load_after"] = list(os.getloadavg())
    environment.append(given.out, line)
    print(table(line))


def table(line: dict) -> str:
    """The figures as a Markdown table, and whether they are what was asked for."""
    out = [
        f"ResNet-56, original {line['original']:.2f} %, {line['images']} images, part: {line['part']}",
        "",
        "| fewer MACs | tool | criterion | accuracy % | norms re-estimated % | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        again = row.get("accuracy_norms_reestimated")
        shown = "" if again is None else f"{again:.2f}"
        cells = [f"{row['macs_ratio']:.2f}", row["tool"], row["method"], f"{row['accuracy']:.2f}", shown]
        out.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    for row in line["rows"]:
        if row["tool"] == "tersor" and row["asked"] in WANTED and line["part"] == "test":
            met = row["accuracy"] >= WANTED[row["asked"]] and row["seconds"] <= LIMIT
            out.append(
                f"\n{row['asked']}x: wanted {WANTED[row['asked']]} % in {LIMIT:.0f} s: {'met' if met else 'NOT met'}"
            )
    return "\n".join(out)


if __name__ == "__main__":
    main()
