"""What training gives back after pruning: `tersor.prune` with and without `recover`, on the whole training part.

    python -m benchmarks.recovery                                     # ResNet-56 at 2.1 and 2.6 times fewer multiply-adds
    python -m benchmarks.recovery --models resnet20 --ratios 2.1 --recover 1epochs
    python -m benchmarks.recovery --recover 60epochs \\
        --loss "0.9*kl(temperature=4)+0.1*cross_entropy+1000*streams"             # where there is a GPU

By default the original is the only teacher, and no labels are read but by the scores. The state that did best on held-out
training images comes out, and is judged once on the test part, paired with the original.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.pruning import right
from tersor.cli.progress import Stages

RESULTS = environment.ROOT / "benchmarks" / "results" / "recovery.jsonl"
WANTED = {("resnet56", 2.1): 92.6, ("resnet56", 2.6): 92.0}  # percent, after at most two epochs without labels
LONG = {("resnet56", 2.1): 93.7, ("resnet56", 2.6): 93.5}  # after many epochs with labels, on a GPU


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one model."""
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "models")}
    line = environment.record(benchmark="recovery", model=key, **settings)
    module, (images, labels), held, test = (
        zoo.module(key),
        zoo.training(key),
        zoo.part(key, "held"),
        zoo.part(key, "test"),
    )
    data = batches(images[: given.images], labels[: given.images])
    before, how = right(module, *test), trainer(given)
    wanted = LONG if how.how.loss.labelled else WANTED
    line |= {"original": percent(before), "items": len(test[1]), "seen": len(labels[: given.images]), "rows": []}
    for ratio in map(float, given.ratios.split(",")):
        for each in (None, how) if given.untrained else (how,):
            start = time.perf_counter()
            with Stages() as progress:
                found = tersor.prune(
                    module,
                    data,
                    macs=1 / ratio,
                    only=("channels",) if key.startswith("resnet") else (),
                    steps=given.steps,
                    recover=each,
                    eval_data=batches(*held),
                    threads=given.threads,
                    seed=given.seed,
                    progress=progress,
                )
            seconds = time.perf_counter() - start
            hits = right(found.module, *test)
            assert isinstance(found.after, float)  # accuracy is one number
            line["rows"].append(
                {
                    "asked": ratio,
                    "macs_ratio": round(found.original.macs / found.size.macs, 4),
                    "recover": "none" if each is None else given.recover,
                    "accuracy": percent(hits),
                    "held": round(100 * found.after, 2),
                    "to_original": figures.paired(hits, before),
                    "wanted": None if each is None else wanted.get((key, ratio)),
                    "seconds": round(seconds, 1),
                    "trained": [course.values() for course in found.trained],
                }
            )
            print({k: v for k, v in line["rows"][-1].items() if k != "trained"}, flush=True)
    return line | {"load_after": list(os.getloadavg())}


def batches(inputs: np.ndarray, labels: np.ndarray, size: int = 256) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, labels) of `size` items each."""
    x, y = torch.from_numpy(np.array(inputs)), torch.from_numpy(np.array(labels))
    return list(zip(x.split(size), y.split(size), strict=True))


def percent(hits: np.ndarray) -> float:
    """The share that is right."""
    return round(100 * float(hits.mean()), 2)


def trainer(given: argparse.Namespace) -> tersor.Recovery:
    """The training that the words of `trained` ask for."""
    how = tersor.Recovery.of(
        given.recover,
        loss=given.loss,
        rate=given.rate,
        decay=given.decay,
        augment=given.augment,
        batch=given.batch,
        precision=given.precision,
        norms=given.norms,
        optimiser=given.optimiser,
        device=given.device,
        keep=given.keep,
    )
    if how is None:
        raise SystemExit("--recover is none: nothing to measure")
    return how


def trained(parser: argparse.ArgumentParser, recover: str, loss: str = "auto", rate: float | None = None) -> None:
    """Add the options of a training, with these defaults, and those that every benchmark of one has."""
    parser.add_argument("--recover", default=recover)
    parser.add_argument("--loss", default=loss)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--augment", default="")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--norms", default="auto")
    parser.add_argument("--optimiser", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", default="best", help="best or last: the state that comes out")
    parser.add_argument("--images", type=int, default=100_000, help="training images, at most")
    parser.add_argument("--threads", type=int, default=2)


def append_lines(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None,
    run: Callable[[str, argparse.Namespace], dict[str, Any]],
    which: str,
) -> None:
    """Parse, and append the line that `run` gives for each name of the option `which`."""
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for name in getattr(given, which).split(","):
        environment.append(given.out, run(name, given))


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the rows, append one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet56", help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--ratios", default="2.1,2.6", help="times fewer multiply-accumulates")
    trained(parser, "2epochs")
    parser.set_defaults(augment="crop,flip")
    parser.add_argument(
        "--untrained", action=argparse.BooleanOptionalAction, default=True, help="rows without training, too"
    )
    parser.add_argument("--steps", type=int, default=1, help="cuts that lead to the ratio")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    append_lines(parser, words, run, "models")


if __name__ == "__main__":
    main()
