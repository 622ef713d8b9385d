"""Unstructured and 2:4 zeros, one-shot: Tersor beside SparseGPT, Wanda, magnitude and Taylor as the field uses them.

    python -m benchmarks.sparsity --models resnet56                # the table: test accuracy, one JSON line a model
    python -m benchmarks.sparsity --llmcompressor PYTHON           # with SparseGPT, of an environment with llmcompressor
    python -m benchmarks.sparsity --models resnet56 --part held --zeros 0.8 --images 256

No training; everybody sees the same training images, at most 1,024. Only Taylor sees their labels. A share of zeros
counts over the weights of all convolutions and linears. SparseGPT moves the weights that stay (see `sparsity_peer`); the
other peers zero the weights of the network as it was trained, norms apart, and repair nothing. All are shown as they are and
after their batch norms were re-estimated on the same images, and the better of the two is compared. The peers that repair
nothing share Tersor's patterns and statistics of the inputs, so their seconds are those of this code, without capturing the
model. Accuracy is compared on the same items.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import environment, figures, zoo
from benchmarks.pruning import Judge, Predict, reestimated, right
from tersor.criteria.magnitude import Magnitude
from tersor.criteria.wanda import Wanda
from tersor.criterion import Criterion
from tersor.densities import allocate, curves
from tersor.fitting import Decisions, fit
from tersor.graph.model import Model, capture
from tersor.maths.pattern import Anywhere, EachRow, NofM, Pattern
from tersor.maths.unfold import from_matrix, to_matrix
from tersor.profile import Facts, measure
from tersor.rewrites.fold_norms import fold_norms
from tersor.site import matrices
from tersor.technique import Technique
from tersor.techniques.sparsegpt import SparseGPT

RESULTS = environment.ROOT / "benchmarks" / "results" / "sparsity.jsonl"
BATCH = 128
Scores = Mapping[str, Tensor]  # (groups, rows, c) by matrix name
Row = tuple[dict[str, Any], np.ndarray]  # figures, and which items were right


class Ours:
    """The network with its norms folded, measured once without labels; then a fit for every share of zeros."""

    def __init__(self, module: nn.Module, images: Tensor, seed: int):
        start = time.perf_counter()
        self._seed, self._batches = seed, [(x,) for x in images.split(BATCH)]
        self._model = fold_norms(capture(module, (images[:2],)))
        self._profile = measure(self._model, self._batches, seed=seed)
        self._curves = curves(self._model, self._profile)
        self.seconds = time.perf_counter() - start

    def allocated(self, zeros: float) -> Model:
        shares = allocate(self._curves, 1 - zeros)
        return self.fitted({name: SparseGPT(Anywhere(density)) for name, density in shares.items()})

    def uniform(self, pattern: Pattern) -> Model:
        return self.fitted({m.name: SparseGPT(pattern) for m in matrices(self._model)})

    def fitted(self, techniques: Mapping[str, Technique]) -> Model:
        decisions = Decisions(techniques=techniques)
        return fit(self._model, self._batches, self._profile, decisions, seed=self._seed).model


class Peers:
    """The network as it was trained; weights are zeroed by a score, and nothing else changes."""

    def __init__(self, module: nn.Module, images: Tensor, labels: Tensor, seed: int):
        self._module, self.images, self._labels, self._seed = module, images, labels, seed
        self._model = capture(module, (images[:2],))

    def by(self, criterion: Criterion) -> Scores:
        batches = [(x,) for x in self.images.split(BATCH)]
        facts = measure(self._model, batches, criterion.needs, seed=self._seed).facts if criterion.needs else {}
        nothing = Facts(torch.empty(0), torch.empty(0), torch.empty(0))
        return {
            m.name: criterion.scores(m, self._matrix(m.name), facts.get(m.name, nothing)) for m in matrices(self._model)
        }

    def taylor(self, batch: int = 32) -> Scores:
        """`sum over batches of (w dL/dw)^2`, with the true labels (Molchanov et al. 2019)."""
        found = {m.name: torch.zeros_like(self._matrix(m.name)) for m in matrices(self._model)}
        weights = dict(self._module.named_parameters())
        for x, y in zip(self.images.split(batch), self._labels.split(batch), strict=True):
            self._module.zero_grad()
            F.cross_entropy(self._module(x), y).backward()
            for m in matrices(self._model):
                w = weights[m.weight]
                assert w.grad is not None  # each matrix leads to the loss
                found[m.name] += to_matrix((w * w.grad).detach().double().square(), m.groups, m.transposed)
        return found

    def weights(self, network: nn.Module) -> list[Tensor]:
        """Of all convolutions and linears."""
        named = dict(network.named_parameters())
        return [named[m.weight].data for m in matrices(self._model)]

    def each(self, scores: Scores, pattern: Pattern) -> nn.Module:
        """The same pattern in every matrix."""
        return self._masked({name: pattern.kept(score) for name, score in scores.items()})

    def everywhere(self, scores: Scores, zeros: float) -> nn.Module:
        """The largest scores of the whole network."""
        flat = torch.cat([score.flatten() for score in scores.values()]).reshape(1, 1, -1)
        parts = Anywhere(1 - zeros).kept(flat).flatten().split([score.numel() for score in scores.values()])
        return self._masked({n: part.reshape(scores[n].shape) for n, part in zip(scores, parts, strict=True)})

    def _masked(self, kept: Mapping[str, Tensor]) -> nn.Module:
        network = copy.deepcopy(self._module)
        weights = dict(network.named_parameters())
        for m in matrices(self._model):
            value = self._matrix(m.name) * kept[m.name]
            weights[m.weight].data = from_matrix(value, m.shape, m.groups, m.transposed).float()
        return network

    def _matrix(self, name: str) -> Tensor:
        m = next(m for m in matrices(self._model) if m.name == name)
        return to_matrix(self._model.tensor(m.weight), m.groups, m.transposed).double()


def zeros_of(weights: Sequence[Tensor]) -> float:
    """The share of exact zeros."""
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def our_rows(ours: Ours, zeros: Sequence[float], judge: Judge, uniform: bool) -> Iterator[Row]:
    """Our figures: densities from the damage curves, and 2:4; with `uniform`, also the same density everywhere."""
    ways: list[tuple[str, float | str, Callable[[], Model]]] = []
    for share in zeros:
        ways.append(("SparseGPT, densities by damage", share, partial(ours.allocated, share)))
        if uniform:
            ways.append(("SparseGPT, uniform", share, partial(ours.uniform, Anywhere(1 - share))))
    ways.append(("SparseGPT", "2:4", partial(ours.uniform, NofM(2, 4))))
    for method, asked, make in ways:
        start = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - start
        zero = zeros_of([model.tensor(m.weight) for m in matrices(model)])
        hits = judge(partial(_logits, model))
        yield _row("tersor", method, asked, zero, seconds, hits), hits


def peer_rows(peers: Peers, zeros: Sequence[float], judge: Judge) -> Iterator[Row]:
    """The peers' figures; the seconds of the scores are counted in every row that uses them."""
    for method, find in (
        ("magnitude", partial(peers.by, Magnitude())),
        ("Wanda", partial(peers.by, Wanda())),
        ("Taylor", peers.taylor),
    ):
        begin = time.perf_counter()
        scores = find()
        scoring = time.perf_counter() - begin
        ways: list[tuple[str, float | str, Callable[[], nn.Module]]] = []
        for share in zeros:
            alike = EachRow(1 - share) if method == "Wanda" else Anywhere(1 - share)
            uniform = f"{method}, {'each row' if method == 'Wanda' else 'uniform'}"
            ways.append((uniform, share, partial(peers.each, scores, alike)))
            if method != "Wanda":
                ways.append((f"{method}, global", share, partial(peers.everywhere, scores, share)))
        ways.append((method, "2:4", partial(peers.each, scores, NofM(2, 4))))
        for name, asked, make in ways:
            start = time.perf_counter()
            network = make()
            seconds = scoring + time.perf_counter() - start
            plain, again = judge(network), judge(reestimated(network, peers.images))
            row = _row("peer", name, asked, zeros_of(peers.weights(network)), seconds, plain)
            yield row | {"accuracy_norms_reestimated": _percent(again)}, max((plain, again), key=np.sum)


def repairing_rows(python: str, key: str, peers: Peers, zeros: Sequence[float], judge: Judge) -> Iterator[Row]:
    """llmcompressor's SparseGPT, the same share in every layer."""
    asked: dict[float | str, str] = {**{share: f"{share:g}" for share in zeros}, "2:4": "2:4"}
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/images.npy", peers.images.numpy())
        command = [python, "-m", "benchmarks.sparsity_peer", key, f"{place}/images.npy", place, *asked.values()]
        environ = {**os.environ, "PYTHONPATH": str(environment.ROOT)}
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=environment.ROOT, env=environ)
        known = json.loads(told.stdout.splitlines()[-1])
        for share, name in asked.items():
            network = zoo.module(key)
            network.load_state_dict(load_file(f"{place}/{name}.safetensors"), strict=False)
            plain, again = judge(network), judge(reestimated(network, peers.images))
            method = f"SparseGPT, llmcompressor {known['llmcompressor']}"
            row = _row("peer", method, share, zeros_of(peers.weights(network)), known["seconds"][name], plain)
            yield row | {"accuracy_norms_reestimated": _percent(again)}, max((plain, again), key=np.sum)


def _row(tool: str, method: str, asked: float | str, zeros: float, seconds: float, hits: np.ndarray) -> dict[str, Any]:
    row = {
        "tool": tool,
        "method": method,
        "asked": asked,
        "zeros": round(zeros, 4),
        "seconds": round(seconds, 1),
        "accuracy": _percent(hits),
    }
    print(row, flush=True)
    return row


def _logits(model: Model, images: Tensor) -> Tensor:
    return model.run(images)[0]


def _percent(hits: np.ndarray) -> float:
    return round(100 * float(hits.mean()), 2)


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows, each peer's with what ours has more on the same items: [low, value, high]."""
    ours = {row["asked"]: hits for row, hits in rows if row["tool"] == "tersor" and "uniform" not in row["method"]}
    peers = [
        row | {"ours_minus_this": figures.paired(ours[row["asked"]], h)} for row, h in rows if row["tool"] == "peer"
    ]
    return [row for row, _ in rows if row["tool"] == "tersor"] + peers


def measured(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The JSON line of one model."""
    line = environment.record(benchmark="sparsity", model=key, **{k: v for k, v in vars(given).items() if k != "out"})
    module = zoo.module(key)
    found, targets = zoo.part(key, "search")
    drawn = np.random.default_rng(given.seed).permutation(len(found))[: given.images]  # the set is sorted by class
    images, labels = torch.from_numpy(np.array(found)[drawn]), torch.from_numpy(np.array(targets)[drawn])
    judged = zoo.part(key, given.part)

    def judge(predict: Predict) -> np.ndarray:
        return right(predict, *judged)

    zeros = [float(share) for share in given.zeros.split(",") if share]
    line["items"], line["images_used"] = len(judged[1]), len(images)
    line["original"] = _percent(judge(module))
    ours = Ours(module, images, given.seed)
    line["seconds_measuring"] = round(ours.seconds, 1)
    rows = list(our_rows(ours, zeros, judge, given.uniform))
    if given.peers:
        peers = Peers(module, images, labels, given.seed)
        rows += peer_rows(peers, zeros, judge)
        if given.llmcompressor:
            rows += repairing_rows(given.llmcompressor, key, peers, zeros, judge)
    line["rows"] = compared(rows)
    line["load_after"] = environment.load()
    return line


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table, best first within each share of zeros."""
    out = [
        f"{zoo.CASES[line['model']].title}, original {line['original']:.2f} %, {line['images_used']} images, part: "
        f"{line['part']} ({line['items']} items); ours: {line['seconds_measuring']:.0f} s of measuring, once",
        "",
        "| zeros asked | zeros | tool | method | accuracy % | norms re-estimated % | ours - this [95 %] | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(line["rows"], key=lambda r: (str(r["asked"]), -r["accuracy"])):
        cells = [str(row["asked"]), f"{row['zeros']:.4f}", row["tool"], row["method"]]
        apart = "{1:+.2f} [{0:+.2f}, {2:+.2f}]".format(*row["ours_minus_this"]) if "ours_minus_this" in row else ""
        again = f"{row['accuracy_norms_reestimated']:.2f}" if "accuracy_norms_reestimated" in row else ""
        out.append(f"| {' | '.join(cells)} | {row['accuracy']:.2f} | {again} | {apart} | {row['seconds']:.0f} |")
    behind = [row for row in line["rows"] if row.get("ours_minus_this", (0, 0, 0))[2] < 0]
    said = "; ".join(f"{row['method']} at {row['asked']}" for row in behind)
    return "\n".join([*out, "", f"Better than ours beyond the interval: {said or 'nobody'}."])


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the tables, append one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet56,mobilenet_v1_075", help="separated by commas")
    parser.add_argument("--zeros", default="0.5,0.7,0.8,0.9", help="shares of zeros, separated by commas")
    parser.add_argument("--images", type=int, default=1024, help="training images")
    parser.add_argument("--part", default="test", choices=["test", "held"], help="'held' while developing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--uniform", action=argparse.BooleanOptionalAction, default=False, help="ours at one density, too"
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--llmcompressor", default="", help="python of an environment that has it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for key in given.models.split(","):
        line = measured(key, given)
        environment.append(given.out, line)
        print(table(line), flush=True)


if __name__ == "__main__":
    main()
