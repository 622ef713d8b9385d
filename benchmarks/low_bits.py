"""What training gives back in few bits: `tersor.quantize` with and without `recover`, on the whole training part.

    python -m benchmarks.low_bits                                     # ResNet-20 from 4 bits down to binary weights
    python -m benchmarks.low_bits --settings W2A2 --recover 60epochs       # where there is a GPU

The original teaches; the steps of all grids are learned. The first and last matrix and the images have 8 bits. The state that
did best on held-out training images comes out, and is judged once on the test part, paired with the original.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.pruning import right
from benchmarks.recovery import append_lines, batches, percent, trained, trainer
from tersor.cli.progress import Stages

RESULTS = environment.ROOT / "benchmarks" / "results" / "low_bits.jsonl"
SETTINGS: dict[str, tuple[str, str]] = {
    "W4A4": ("4", "4"),
    "W3A3": ("3", "3"),
    "W2A2": ("2", "2"),
    "ternary": ("ternary", "none"),
    "binary": ("binary", "none"),
}
PUBLISHED = {"W4A4": -0.5, "W3A3": -0.5, "W2A2": -2.0}  # points from fp32, of APoT and LSQ after hundreds of epochs


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one model."""
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "models")}
    line = environment.record(benchmark="low_bits", model=key, **settings)
    module, (images, labels) = zoo.module(key), zoo.training(key)
    held, test = zoo.part(key, "held"), zoo.part(key, "test")
    data = batches(images[: given.images], labels[: given.images])
    before, how = right(module, *test), trainer(given)
    line |= {"original": percent(before), "items": len(test[1]), "seen": len(labels[: given.images]), "rows": []}
    for name in given.settings.split(","):
        weights, activations = SETTINGS[name]
        for each in (None, how) if given.untrained else (how,):
            start = time.perf_counter()
            with Stages() as progress:
                found = tersor.quantize(
                    module,
                    data,
                    weights=weights,
                    activations=activations,
                    recover=each,
                    eval_data=batches(*held),
                    threads=given.threads,
                    seed=given.seed,
                    progress=progress,
                )
            assert isinstance(found, tersor.Quantized)
            assert isinstance(found.after, float)  # accuracy is one number
            seconds = time.perf_counter() - start
            hits = right(found.module, *test)
            line["rows"].append(
                {
                    "setting": name,
                    "recover": "none" if each is None else given.recover,
                    "accuracy": percent(hits),
                    "held": round(100 * found.after, 2),
                    "to_original": figures.paired(hits, before),
                    "published": None if each is None else PUBLISHED.get(name),
                    "bytes": found.bytes,
                    "seconds": round(seconds, 1),
                    "trained": None if found.trained is None else found.trained.values(),
                }
            )
            print({k: v for k, v in line["rows"][-1].items() if k != "trained"}, flush=True)
    return line | {"load_after": list(os.getloadavg())}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the rows, append one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20", help="of " + ", ".join(zoo.CASES))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    trained(parser, "3epochs")
    parser.set_defaults(augment="crop,flip")
    parser.add_argument(
        "--untrained", action=argparse.BooleanOptionalAction, default=True, help="rows without training, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    append_lines(parser, words, run, "models")


if __name__ == "__main__":
    main()
