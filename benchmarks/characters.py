"""Weights of a character LSTM (textgenrnn) in few bits: loss of the next character, beside plain rounding.

    python -m benchmarks.characters                  # one JSON line, a table
    python -m benchmarks.characters --part held      # while developing: on titles that the model wrote itself

Calibrated on titles that the model draws itself, one character after the other; no labels, no training. The loss is that of the
first 100 published titles, which nothing else reads. In W4, W3 and W2 a scale serves 32 columns. Both tools put the same
matrices (those of the recurrent cells and the last one, which has 8 bits) on the same kind of grid; plain rounding takes the
nearest values on grids that reach the extremes. No peer library runs GPTQ on recurrent cells.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor
from benchmarks import environment, zoo
from benchmarks.command import one_line, parser
from benchmarks.language import paired
from tersor.maths.grid import Integers, PerChannel, PerGroup, absmax

RESULTS = environment.ROOT / "benchmarks" / "results" / "characters.jsonl"
CELLS = ((8, 0), (4, 32), (3, 32), (2, 32))  # bits, columns that share a scale
WINDOW, TITLES, LENGTH = 40, 128, 60
EACH = 16  # windows a title that are calibrated on
Windows = tuple[Tensor, Tensor, np.ndarray]  # characters before, the next one, and the number of the title


@torch.no_grad()
def drawn(module: nn.Module, start: int, seed: int) -> Windows:
    """Titles that the model writes: it begins with `start`, the mark of a beginning and an end."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.zeros(TITLES, WINDOW - 1, dtype=torch.long), torch.full((TITLES, 1), start)], 1)
    parts = []
    for step in range(LENGTH):
        before = ids[:, -WINDOW:]
        following = module(before).softmax(-1).multinomial(1, generator=draw)
        going = torch.ones(TITLES, dtype=torch.bool) if step == 0 else (ids[:, WINDOW:] != start).all(1)
        parts.append((before[going], following[going, 0], torch.arange(TITLES)[going]))
        ids = torch.cat([ids, following], 1)
    x, y, title = (torch.cat(some) for some in zip(*parts, strict=True))
    return x, y, title.numpy()


def published(vocabulary: dict[str, int]) -> Windows:
    """The first hundred titles."""
    shared = zoo.loaders()
    path = Path(shared.p("textgenrnn", "hacker_news_2000.txt"))
    lines = path.read_text(encoding="utf8").split("\n")[1:101]
    parts = [shared.char_data([line], vocabulary) for line in lines]
    title = np.concatenate([np.full(len(y), i) for i, (_, y) in enumerate(parts)])
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), title


@torch.no_grad()
def losses(module: nn.Module, windows: Windows) -> np.ndarray:
    """Nats a character of each title."""
    x, y, title = windows
    lost = torch.cat(
        [F.cross_entropy(module(a), b, reduction="none") for a, b in zip(x.split(256), y.split(256), strict=True)]
    )
    return np.bincount(title, lost.double().numpy()) / np.bincount(title)


def rounded(module: nn.Module, names: dict[str, int], groups: int) -> nn.Module:
    """Each of the matrices at its nearest values, in so many bits."""
    found = copy.deepcopy(module)
    for name, parameter in found.named_parameters():
        bits = names.get(name, names.get(name.removesuffix(".weight")))
        if bits is not None:
            kind = Integers(bits, bits > 2, PerGroup(groups) if groups else PerChannel())  # all four levels of 2 bits
            grid = absmax(parameter.data.double(), kind)
            parameter.data = grid.round(parameter.data.double()).float()
    return found


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    part, threads, seed = given.part, given.threads, given.seed
    line = environment.record(benchmark="characters", model="textgenrnn", part=part, threads=threads, seed=seed)
    module, vocabulary = zoo.loaders().textgenrnn()
    start = vocabulary["<s>"]
    x, _, _ = drawn(module, start, seed)
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: EACH * TITLES]
    judged = published(vocabulary) if part == "test" else drawn(module, start, seed + 1)
    whole = losses(module, judged)
    line |= {"titles": len(whole), "windows_calibrated": len(some), "loss": float(whole.mean()), "rows": []}
    for bits, groups in CELLS:
        begin = time.perf_counter()
        found: Any = tersor.quantize(
            module,
            [(piece,) for piece in x[some].split(64)],
            weights=bits,
            groups=groups,
            metric="agreement",
            threads=threads,
            seed=seed,
        )
        seconds = time.perf_counter() - begin
        ours = losses(found.module, judged)
        theirs = losses(rounded(module, dict(found.weights), groups), judged)
        row = {"bits": bits, "groups": groups, "bytes": list(found.bytes), "seconds": round(seconds, 1)}
        row |= {"ours": round(float((ours - whole).mean()), 5), "rounding": round(float((theirs - whole).mean()), 5)}
        row["ours_minus_rounding"] = paired(ours, theirs)
        line["rows"].append(row)
        print(row, flush=True)
    return line | {"load_after": environment.load()}


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    out = [
        f"textgenrnn, loss {line['loss']:.4f} on {line['titles']} titles, part: {line['part']}; nats a character lost",
        "",
        "| bits | groups | bytes | ours | rounding | ours - rounding [95 %] | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in line["rows"]:
        low, value, high = row["ours_minus_rounding"]
        out.append(
            f"| {row['bits']} | {row['groups'] or 'output'} | {row['bytes'][1] / 1000:.0f} k | {row['ours']:+.4f} | "
            f"{row['rounding']:+.4f} | {value:+.4f} [{low:+.4f}, {high:+.4f}] | {row['seconds']:.0f} |"
        )
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the JSON line."""
    one_line(parser(__doc__, RESULTS, threads=1), words, run, table)


if __name__ == "__main__":
    main()
