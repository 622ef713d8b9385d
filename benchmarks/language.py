"""Pruning a small language model (stories260K): loss against how much is left, beside magnitude.

    python -m benchmarks.language                  # one JSON line, a table
    python -m benchmarks.language --part held      # while developing: on text that the model wrote itself

One-shot, no training. The model is calibrated on text that it writes itself; the loss is that of the next token on five
published stories, which nothing else reads. Ours orders heads and neurons by structured OBS, searches n:m supports,
chooses layers by what leaving them out does to the outputs, and repairs what stays. Magnitude removes what has the
smallest weights (of a branch: the smallest last matrix) and repairs nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import environment, zoo
from benchmarks.command import one_line, parser
from tersor.criteria.magnitude import Magnitude
from tersor.fitting import Decisions, fit
from tersor.graph.branches import branches, without
from tersor.graph.kinds import KINDS
from tersor.graph.model import Model, capture
from tersor.maths.pattern import NofM
from tersor.narrowing import dispensable
from tersor.profile import Profile, measure
from tersor.rewrites.permute import arranged
from tersor.rewrites.shrink import shrink
from tersor.site import Group, groups, matrices
from tersor.techniques.sparse import Sparse
from tersor.techniques.sparsegpt import SparseGPT
from tersor.widths import curves, ranked

RESULTS = environment.ROOT / "benchmarks" / "results" / "language.jsonl"
WINDOW, WINDOWS = 128, 128
GONE = (0.125, 0.25, 0.5)  # of the heads, of the neurons
LAYERS = (1, 2, 3)  # residual branches: half a block each
PATTERNS = (NofM(2, 4), NofM(1, 4))
Make = Callable[[], Model]
Ground = tuple[Model, list[tuple[Tensor, ...]], Profile]


@torch.no_grad()
def written(module: torch.nn.Module, first: int, seed: int, count: int = WINDOWS) -> Tensor:
    """(count, WINDOW + 1) tokens that the model draws itself, one after the other, from the `first` on."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 1), first)
    for _ in range(WINDOW):
        ids = torch.cat([ids, module(ids)[:, -1].softmax(-1).multinomial(1, generator=draw)], 1)
    return ids


def stories(tokens: Any) -> Tensor:
    """The published stories in windows; the last ones of a story overlap so that none is left out."""
    found = []
    for story in zoo.loaders().tinystories():
        ids = tokens.encode(story)
        starts = [*range(0, len(ids) - WINDOW - 1, WINDOW), max(0, len(ids) - WINDOW - 1)]
        found += [ids[i : i + WINDOW + 1] for i in starts if len(ids[i : i + WINDOW + 1]) == WINDOW + 1]
    return torch.tensor(found)


def losses(model: Model, ids: Tensor) -> np.ndarray:
    """Nats a token of each window."""
    scores = torch.cat([model.run(part[:, :-1].contiguous())[0] for part in ids.split(32)])
    return (
        F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).mean(1).numpy()
    )


def kinds(model: Model) -> dict[str, list[Group]]:
    """The groups to prune, by kind."""
    found = groups(model)
    return {kind: [g for g in found if g.refused is None and g.kind == kind] for kind in KINDS}


def asked(ground: Ground) -> Iterator[tuple[str, float, Make, Make]]:
    """(granularity, share that goes, how ours makes it, how magnitude makes it)."""
    model, batches, profile = ground

    def fitted(decisions: Decisions) -> Model:
        return fit(model, batches, profile, decisions).model

    def without_some(count: int) -> Model:
        return fitted(Decisions(drop=dispensable(model, batches, count)))

    def refitted(other: Model, decisions: Decisions) -> Model:
        return fit(other, batches, measure(other, batches), decisions).model

    for kind, some in kinds(model).items():
        if not some:
            continue
        ours, theirs = curves(model, profile, some), ranked(model, profile, some, Magnitude(2))
        for gone in GONE:
            left = {g.name: g.blocks - min(g.blocks - 1, math.ceil(gone * g.blocks)) for g in some if g.name in ours}
            keeps = [{name: order[name].kept(width) for name, width in left.items()} for order in (ours, theirs)]
            share = 1 - sum(left.values()) / sum(g.blocks for g in some if g.name in ours)
            yield kind, share, partial(fitted, Decisions(keep=keeps[0])), partial(shrink, model, keeps[1])
    every = branches(model)
    weights = {m.name: model.tensor(m.weight) for m in matrices(model)}
    smallest = sorted((b.name for b in every), key=lambda name: float(weights[name].norm()))
    for count in LAYERS:
        yield (
            "layers",
            count / len(every),
            partial(without_some, count),
            partial(without, model, smallest[:count]),
        )
    for pattern in PATTERNS:
        sparse = Decisions(techniques={name: SparseGPT(pattern) for name in weights})
        moved = arranged(model, profile, pattern)
        plain = {m.name: Sparse(pattern, Magnitude(), repair=False) for m in matrices(model)}
        yield (
            f"{pattern.n}:{pattern.m}",
            1 - pattern.n / pattern.m,
            partial(refitted, moved, sparse),
            partial(replaced, model, profile, plain),
        )


def replaced(model: Model, profile: Profile, techniques: dict[str, Sparse]) -> Model:
    """Each matrix by itself as its technique makes it, nothing repaired."""
    small = model.copy()
    for m in matrices(model):
        small.assign(m.weight, techniques[m.name].fit(m, model.tensor(m.weight), profile.facts[m.name]).dense())
    return small


def paired(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """[low, value, high] of the difference in nats, over windows."""
    apart = ours - theirs
    draws = np.random.default_rng(0).choice(apart, (10_000, len(apart))).mean(1)
    return [round(float(v), 4) for v in (np.percentile(draws, 2.5), apart.mean(), np.percentile(draws, 97.5))]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    part, threads, seed = given.part, given.threads, given.seed
    line = environment.record(benchmark="language", model="stories260k", part=part, threads=threads, seed=seed)
    module, tokens = zoo.loaders().stories260k()
    first = tokens.encode("Once")[0]
    text = written(module, first, seed)
    judged = stories(tokens) if part == "test" else written(module, first, seed + 1)
    batches: list[tuple[torch.Tensor, ...]] = [(chunk[:, :-1].contiguous(),) for chunk in text.split(32)]
    model = capture(module, (batches[0][0][:2],))
    ground = model, batches, measure(model, batches, seed=seed)
    whole = losses(model, judged)
    parameters = sum(p.numel() for p in model.module.parameters())
    line |= {"windows": len(judged), "tokens_calibrated": text.numel(), "loss": float(whole.mean()), "rows": []}
    for kind, share, ours, theirs in asked(ground):
        start = time.perf_counter()
        small = ours()
        seconds = time.perf_counter() - start
        found = [losses(each, judged) for each in (small, theirs())]
        left = sum(int(p.count_nonzero()) for p in small.module.parameters()) / parameters
        row = {
            "granularity": kind,
            "gone": round(share, 4),
            "parameters_left": round(left, 4),
            "loss": round(float(found[0].mean()), 4),
            "magnitude": round(float(found[1].mean()), 4),
            "ours_minus_magnitude": paired(*found),
            "seconds": round(seconds, 1),
        }
        line["rows"].append(row)
        print(row, flush=True)
    return line | {"load_after": environment.load()}


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    out = [
        f"stories260K, loss {line['loss']:.4f} on {line['windows']} windows of {WINDOW} tokens, part: {line['part']}",
        "",
        "| what goes | share | parameters left | loss | magnitude | ours - magnitude [95 %] | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        low, value, high = row["ours_minus_magnitude"]
        out.append(
            f"| {row['granularity']} | {100 * row['gone']:.1f} % | {100 * row['parameters_left']:.1f} % | {row['loss']:.3f} "
            f"| {row['magnitude']:.3f} | {value:+.3f} [{low:+.3f}, {high:+.3f}] | {row['seconds']:.0f} |"
        )
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the JSON line."""
    one_line(parser(__doc__, RESULTS, threads=2), words, run, table)


if __name__ == "__main__":
    main()
