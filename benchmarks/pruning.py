"""Structured pruning at equal multiply-accumulates: Tersor's structured OBS beside torch-pruning.

    python -m benchmarks.pruning                                # every model: test accuracy, one JSON line each
    python -m benchmarks.pruning --models resnet20 --part held --no-peers --images 256

One-shot, no training: at most 1,024 training images; Tersor sees no labels, torch-pruning's Taylor and Hessian criteria see
the true ones. In the residual networks only the inner channels of the blocks are pruned, in both tools; elsewhere every
axis but the classes. One counter counts for both. torch-pruning is shown as it is and after its batch norms were
re-estimated on the same images: in one step, local and global, and, as its documentation iterates, in many small steps with
scores taken anew, local and global with isomorphic groups. Its best row is chosen on the test images themselves. The pruned
model is timed in float beside the original, in both runtimes: fewer multiply-accumulates are not always less time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import environment, figures, zoo
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.maths.schedule import geometric
from tersor.narrowing import narrow, refitting, total
from tersor.profile import measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import Group, groups
from tersor.target import Compressed
from tersor.targets import target_called
from tersor.trials import Candidate, time_side_by_side, try_out

LIMIT = 180.0  # seconds that ours may take; a peer has no limit
SMALL_STEPS, REFRESHED = 100, 5  # of an iterated pruning of a peer, and how often its scores are taken anew
RESULTS = environment.ROOT / "benchmarks" / "results" / "pruning.jsonl"
IMPORTANCES = ("magnitude", "taylor", "hessian")
RUNTIMES = ("onnxruntime", "openvino")
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What is asked of one model: test accuracy in percent (None: no worse than the peer) by times fewer MACs."""

    wanted: dict[float, float | None]
    inner: bool  # only the channels between the convolutions of a residual block
    batches: tuple[int, ...] = (1, 64)  # to be timed


CASES = {
    "resnet56": Case({2.1: 88.5, 2.6: 83.0}, inner=True),
    "resnet20": Case({2.1: 65.0}, inner=True),
    "kws_dscnn": Case({2.0: None}, inner=False),
    "mobilenet_v1_075": Case({1.5: None}, inner=False, batches=(1, 16)),
}


def pruned(
    module: nn.Module, images: Tensor, ratio: float, inner: bool, steps: int = 1, seed: int = 0, multiple: int = 1
) -> Model:
    """Ours: the module with `ratio` times fewer multiply-accumulates, from unlabelled images; widths in `multiple`s."""
    model = fold_norms(capture(module, (images[:2],)))
    batches = [(x,) for x in images.split(128)]
    profile = measure(model, batches, seed=seed)
    names = [group.name for group in prunable(model, inner)]
    refit = refitting(model, batches, profile, seed)
    budgets = [share * total(model) for share in geometric(1 / ratio, steps)]
    *_, keep = narrow(model, batches, profile, names, budgets, refit=refit, step=multiple)
    return fit(model, batches, profile, Decisions(keep=keep), seed=seed).model


def prunable(model: Model, inner: bool) -> list[Group]:
    """The groups to prune."""
    return [g for g in groups(model) if g.refused is None and (g.name.endswith(".conv1") or not inner)]


class Peer:
    """torch-pruning's one-shot pruner by one criterion, whose gradients are taken once."""

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor, importance: str, inner: bool):
        self.module, self.example = module, images[:2]
        self._data, self._importance = (images, labels), importance
        self._scored = copy.deepcopy(module)
        self._scorer = _scorer(self._scored, images, labels, importance)
        self._inner = inner

    def pruned(self, ratio: float, everywhere: bool) -> nn.Module:
        """With `ratio` times fewer multiply-accumulates; `everywhere` compares scores across layers."""
        budget = hooked_macs(self.module, self.example) / ratio
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            spent = hooked_macs(self._cut(middle, everywhere), self.example)
            low, high = (middle, high) if spent > budget else (low, middle)
        return self._cut(high, everywhere)

    def iterated(self, ratio: float, everywhere: bool) -> nn.Module:
        """With `ratio` times fewer multiply-accumulates, step by step; `everywhere`: compared within isomorphic groups."""
        import torch_pruning as tp

        network = copy.deepcopy(self.module)
        scorer = _scorer(network, *self._data, self._importance)
        pruner = tp.pruner.BasePruner(
            network,
            self.example,
            importance=scorer,
            global_pruning=everywhere,
            isomorphic=everywhere,
            iterative_steps=SMALL_STEPS,
            pruning_ratio=0.95,
            max_pruning_ratio=0.95,
            ignored_layers=self._ignored(network),
        )
        whole = spent = hooked_macs(network, self.example)
        marks = [whole * ratio ** (-i / REFRESHED) for i in range(1, REFRESHED + 1)]
        for _ in range(SMALL_STEPS):
            if spent <= marks[-1]:
                break
            pruner.step()
            spent = hooked_macs(network, self.example)
            if spent <= marks[0] and len(marks) > 1:
                marks = [mark for mark in marks[:-1] if mark < spent] + marks[-1:]
                pruner.importance = _scorer(network, *self._data, self._importance)
        network.zero_grad()
        return network.eval()

    def _cut(self, share: float, everywhere: bool) -> nn.Module:
        """A copy without the channels that go at that pruning ratio."""
        import torch_pruning as tp

        names = {id(m): name for name, m in self._scored.named_modules()}
        gone: dict[str, list[int]] = {}
        for group in self._steps(share, everywhere):
            gone.setdefault(names[id(group[0].dep.target.module)], []).extend(group[0].idxs)
        network = copy.deepcopy(self.module)
        graph = tp.DependencyGraph().build_dependency(network, self.example)
        for name, channels in gone.items():
            layer = network.get_submodule(name)
            how = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, how, sorted(set(channels))).prune()
        return network.eval()

    def _steps(self, share: float, everywhere: bool) -> list[Any]:
        """The groups that torch-pruning would remove at that pruning ratio, not yet removed."""
        import torch_pruning as tp

        pruner = tp.pruner.BasePruner(
            self._scored,
            self.example,
            importance=self._scorer,
            global_pruning=everywhere,
            pruning_ratio=share,
            max_pruning_ratio=0.95,
            ignored_layers=self._ignored(self._scored),
        )
        return list(pruner.step(interactive=True))

    def _ignored(self, network: nn.Module) -> list[nn.Module]:
        layers: list[nn.Module] = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if not self._inner:
            return layers[-1:]  # the classes
        inner = {id(m.conv1) for m in network.modules() if hasattr(m, "conv1") and hasattr(m, "conv2")}
        return [m for m in layers if id(m) not in inner]


@torch.no_grad()
def hooked_macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of all convolutions and linears, per item; quicker than a capture, and the same count."""
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += out.numel() // len(out) * weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    module(example)
    for hook in hooks:
        hook.remove()
    return total


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
def right(predict: Predict, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Right or wrong, item by item."""
    parts = [np.array(images[i : i + 100]) for i in range(0, len(labels), 100)]
    guesses = [predict(torch.from_numpy(part)).argmax(1).numpy() for part in parts]
    return np.concatenate(guesses) == labels


Judge = Callable[[Predict], np.ndarray]


def our_row(
    key: str, module: nn.Module, images: Tensor, ratio: float, multiple: int, judge: Judge, given: argparse.Namespace
) -> tuple[dict, np.ndarray]:
    """Our figures at one ratio, and which items were right."""
    start, cpu = time.perf_counter(), time.process_time()
    small = pruned(module, images, ratio, CASES[key].inner, given.steps, given.seed, multiple)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    original = fold_norms(capture(module, (images[:2],)))
    hits = judge(lambda x: small.run(x)[0])
    return {
        "tool": "tersor",
        "method": "structured OBS" + (f", widths in {multiple}s" if multiple > 1 else ""),
        "asked": ratio,
        "macs_ratio": round(total(original) / total(small), 4),
        "accuracy": _percent(hits),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "speed": speed(key, original, small, given),
    }, hits


def speed(key: str, original: Model, small: Model, given: argparse.Namespace) -> dict[str, Any]:
    """How many times faster the pruned model is in float, [low, value, high], by runtime and batch size."""
    found: dict[str, Any] = {}
    for runtime in RUNTIMES:
        for batch in CASES[key].batches if given.rounds else ():
            with TemporaryDirectory() as scratch:
                target = target_called(runtime, "fp32")
                models = {"original": original, "pruned": small}
                trials = [try_out(Candidate(n, target, Compressed(m)), Path(scratch) / n) for n, m in models.items()]
                inputs = [zoo.sample(key, batch)]
                done = time_side_by_side(
                    trials, inputs, threads=given.threads, rounds=given.rounds, scratch=Path(scratch)
                )
            ratio = done.ratio("original", "pruned")
            found[f"{runtime} batch {batch}"] = [round(v, 3) for v in (ratio.low, ratio.value, ratio.high)]
    return found


def peer_rows(
    key: str,
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    judge: Judge,
    ours: dict[float, np.ndarray],
) -> list[dict]:
    """torch-pruning's figures: every criterion, local and global, without and with re-estimated norms."""
    rows = []
    images, labels = data
    whole = total(capture(module, (images[:2],)))
    for importance in IMPORTANCES:
        start = time.perf_counter()
        peer = Peer(module, images, labels, importance, CASES[key].inner)
        scoring = time.perf_counter() - start
        for ratio in CASES[key].wanted:
            for everywhere, small in itertools.product((False, True), (False, True)):
                start = time.perf_counter()
                network = (peer.iterated if small else peer.pruned)(ratio, everywhere)
                seconds = time.perf_counter() - start + (0 if small else scoring)
                spread = ("global, isomorphic" if small else "global") if everywhere else "local"
                plain, again = judge(network), judge(reestimated(network, images))
                rows.append(
                    {
                        "tool": "torch-pruning",
                        "method": f"{importance}, {spread}{', in small steps' if small else ''}",
                        "asked": ratio,
                        "macs_ratio": round(whole / total(capture(network, (images[:2],))), 4),
                        "seconds": round(seconds, 1),
                        "accuracy": _percent(plain),
                        "accuracy_norms_reestimated": _percent(again),
                        "ours_minus_this": figures.paired(ours[ratio], max((plain, again), key=np.sum)),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def _percent(hits: np.ndarray) -> float:
    return round(100 * float(hits.mean()), 2)


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one model."""
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "models")}
    line = environment.record(benchmark="pruning", model=key, **settings)
    module = zoo.module(key)
    found, targets = zoo.part(key, "search")
    drawn = np.random.default_rng(given.seed).permutation(len(found))[: given.images]  # a set may be sorted by class
    data = torch.from_numpy(np.array(found)[drawn]), torch.from_numpy(np.array(targets)[drawn])
    judged = zoo.part(key, given.part)

    def judge(predict: Predict) -> np.ndarray:
        return right(predict, *judged)

    line |= {"original": _percent(judge(module)), "seen": len(data[0]), "items": len(judged[1]), "rows": []}
    hits = {}
    for ratio in CASES[key].wanted:
        for multiple in (given.multiple, 1):  # the last one is compared with the peers
            row, hits[ratio] = our_row(key, module, data[0], ratio, multiple, judge, given)
            line["rows"].append(row)
            print(row, flush=True)
            if given.multiple == 1:
                break
    if given.peers:
        line["rows"] += peer_rows(key, module, data, judge, hits)
    line["load_after"] = list(os.getloadavg())
    return line


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the tables, append one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES), help="of " + ", ".join(CASES))
    parser.add_argument("--images", type=int, default=1024, help="training images, at most")
    parser.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30, help="of the clock; 0 times nothing")
    parser.add_argument("--steps", type=int, default=1, help="cuts that lead to the ratio")
    parser.add_argument("--multiple", type=int, default=8, help="of channels, in a row of its own; 1: no such row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for key in given.models.split(","):
        line = run(key, given)
        environment.append(given.out, line)
        print(table(line), flush=True)


def table(line: dict) -> str:
    """The figures as a Markdown table, and whether they are what was asked for."""
    out = [
        f"{line['model']}, original {line['original']:.2f} %, {line['seen']} images, part: {line['part']}",
        "",
        "| fewer MACs | tool | criterion | accuracy % | norms re-estimated % | ours - this [95 %] | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        again, ours = row.get("accuracy_norms_reestimated"), row.get("ours_minus_this")
        shown = "" if again is None else f"{again:.2f}"
        apart = "" if ours is None else f"{ours[1]:+.2f} [{ours[0]:+.2f}, {ours[2]:+.2f}]"
        cells = [f"{row['macs_ratio']:.2f}", row["tool"], row["method"], f"{row['accuracy']:.2f}", shown, apart]
        out.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join(out + [_said(line, row) for row in line["rows"] if row["tool"] == "tersor"])


def _said(line: dict, row: dict) -> str:
    wanted = CASES[line["model"]].wanted[row["asked"]]
    asked = [other for other in line["rows"] if other["asked"] == row["asked"] and "ours_minus_this" in other]
    peers = [peer["ours_minus_this"][2] >= 0 for peer in asked if "widths" not in row["method"]]
    if wanted is None and not peers:
        return f"\n{row['method']}, {row['asked']}x: not compared with the peers."
    met = (wanted is None or row["accuracy"] >= wanted) and row["seconds"] <= LIMIT and all(peers)
    speeds = ", ".join(f"{name} {value[1]:.2f}x" for name, value in row["speed"].items())
    idle = ", ".join(name for name, (low, _, _) in row["speed"].items() if low <= 1)
    speeds += f"; fewer multiply-accumulates but no less time: {idle}" if idle else ""
    aim = "not below the peers" if wanted is None else f"{wanted} %"
    verdict = "met" if met else "NOT met"
    return f"\n{row['method']}, {row['asked']}x: wanted {aim} in {LIMIT:.0f} s: {verdict}. Faster in float: {speeds}."


if __name__ == "__main__":
    main()
