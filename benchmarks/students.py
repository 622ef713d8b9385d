"""A student that was never trained, with and without its teacher: the same steps, images and seeds.

    python -m benchmarks.students                                     # ResNet-20 and ResNet-8 beside ResNet-56
    python -m benchmarks.students --students resnet20 --recover 60epochs --seeds 0,1,2 --augment crop,flip

Both read the labels; one hears the teacher too (`--loss`). Each may have the rate that suits it: labels alone bear less. The
state that did best on held-out training images comes out, and is judged once on the test part.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.pruning import right
from benchmarks.recovery import append_lines, batches, percent, trained, trainer

RESULTS = environment.ROOT / "benchmarks" / "results" / "students.jsonl"
BLOCKS = {"resnet20": 3, "resnet14": 2, "resnet8": 1}  # in each of the three stages


def run(student: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one student."""
    settings = {k: v for k, v in vars(given).items() if k not in ("out", "students")}
    line = environment.record(benchmark="students", student=student, **settings)
    teacher, (images, labels) = zoo.module(given.teacher), zoo.training(given.teacher)
    held, test = zoo.part(given.teacher, "held"), zoo.part(given.teacher, "test")
    data = batches(images[: given.images], labels[: given.images])
    line |= {"original": percent(right(teacher, *test)), "items": len(test[1]), "seen": len(labels[: given.images])}
    rows: list[dict[str, Any]] = []
    hits: dict[tuple[int, str], np.ndarray] = {}
    for seed in map(int, given.seeds.split(",")):
        for loss, rate in ((given.loss, given.rate), ("cross_entropy", given.rate_alone)):
            torch.manual_seed(seed)  # the same student for both
            start = time.perf_counter()
            found = tersor.distil(
                zoo.loaders().ResNetCifar(BLOCKS[student]).eval(),
                data,
                teacher=teacher,
                recover=trainer(argparse.Namespace(**vars(given) | {"loss": loss, "rate": rate})),
                eval_data=batches(*held),
                threads=given.threads,
                seed=seed,
            )
            assert isinstance(found.after, float)
            hits[seed, loss] = right(found.module, *test)
            rows.append(
                {
                    "seed": seed,
                    "loss": loss,
                    "rate": rate,
                    "accuracy": percent(hits[seed, loss]),
                    "held": round(100 * found.after, 2),
                    "parameters": found.parameters,
                    "seconds": round(time.perf_counter() - start, 1),
                    "trained": found.trained.values(),
                }
            )
            print({k: v for k, v in rows[-1].items() if k != "trained"}, flush=True)
        rows[-2]["to_untaught"] = figures.paired(hits[seed, given.loss], hits[seed, "cross_entropy"])
    for name, loss in (("taught", given.loss), ("untaught", "cross_entropy")):
        scores = [row["accuracy"] for row in rows if row["loss"] == loss]
        line[name] = {
            "mean": round(statistics.fmean(scores), 2),
            "spread": round(statistics.stdev(scores), 2) if len(scores) > 1 else None,
        }
    return line | {"rows": rows, "load_after": list(os.getloadavg())}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the rows, append one JSON line a student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", default="resnet20,resnet8", help="of " + ", ".join(BLOCKS))
    parser.add_argument("--teacher", default="resnet56")
    trained(parser, "3epochs", "0.9*kl(temperature=4)+0.1*cross_entropy+100*streams", 0.1)
    parser.set_defaults(batch=128)
    parser.add_argument("--rate-alone", type=float, default=0.05, help="of the one that reads labels only")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=RESULTS)
    append_lines(parser, words, run, "students")


if __name__ == "__main__":
    main()
