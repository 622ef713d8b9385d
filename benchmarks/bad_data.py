"""Bad calibration data: is it named, or handled, and what do the quantisers in use today make of it?

    python -m benchmarks.bad_data                  # ResNet-20 in int8, one JSON line, a table
    python -m benchmarks.bad_data --part held      # while developing

1,024 calibration images, of which something is wrong: one value Inf, one value 1e30, one image in thirty a hundred times too
bright, everything zero, or one channel constant in all images. A tool may refuse or warn (its words are kept), or quantize:
then its accuracy is compared, in pairs, with what the same tool reaches from good images.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import tersor
from benchmarks import environment, figures, zoo
from benchmarks.command import one_line, parser
from benchmarks.peers import QUANTISERS
from benchmarks.quantization import in_parts
from tersor.errors import DataWarning

RESULTS = environment.ROOT / "benchmarks" / "results" / "bad_data.jsonl"
ITEM = 17  # of the image that is damaged


def _one(value: float) -> Callable[[np.ndarray], None]:
    def damage(images: np.ndarray) -> None:
        images[ITEM, 0, 5, 5] = value

    return damage


def _bright(images: np.ndarray) -> None:
    images[ITEM::30] *= 100


def _zero(images: np.ndarray) -> None:
    images[:] = 0


def _channel(images: np.ndarray) -> None:
    images[:, 1] = images[0, 1, 0, 0]


CASES: dict[str, Callable[[np.ndarray], None]] = {
    "good": lambda images: None,
    "one Inf": _one(float("inf")),
    "one 1e30": _one(1e30),
    "3 % too bright": _bright,
    "all zero": _zero,
    "a constant channel": _channel,
}
TOOLS = ("tersor", *QUANTISERS)


def answer(tool: str, key: str, images: np.ndarray, inputs: np.ndarray, threads: int, seed: int) -> np.ndarray | str:
    """The classes that the quantised model gives for `inputs`, or why there is none."""
    try:
        if tool == "tersor":
            batches = [(x,) for x in torch.from_numpy(images).split(50)]
            judged = [(x,) for x in torch.from_numpy(np.array(zoo.part(key, "held")[0])).split(100)]
            made: Any = tersor.quantize(
                zoo.module(key),
                batches,
                weights=8,
                activations=8,
                metric="agreement",
                eval_data=judged,  # else half of the images would be kept aside
                threads=threads,
                seed=seed,
            )
            return in_parts(made.module)(inputs).argmax(1)
        _, prepare, predict = QUANTISERS[tool]
        folder = zoo.cache_folder() / "bad_data" / tool
        folder.mkdir(parents=True, exist_ok=True)
        prepare(key, folder, images)
        return predict(key, folder, inputs).argmax(1)
    except Exception as refusal:  # whatever a tool raises is its answer
        return f"{type(refusal).__name__}: {refusal}".split("\n")[0]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The line."""
    settings = {k: v for k, v in vars(given).items() if k != "out"}
    line = environment.record(benchmark="bad_data", **settings)
    good = np.array(zoo.part(given.model, "calibration")[0])
    inputs, labels = zoo.part(given.model, given.part)
    line |= {"images": len(good), "items": len(labels), "rows": []}
    for tool in TOOLS:
        whole: np.ndarray | None = None
        for name, damage in CASES.items():
            images = good.copy()
            damage(images)
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                found = answer(tool, given.model, images, inputs, given.threads, given.seed)
            row: dict[str, Any] = {"tool": tool, "data": name}
            named = [str(w.message) for w in heard if issubclass(w.category, DataWarning)]
            row |= {"warned": named[0]} if named else {}
            if isinstance(found, str):
                row["refused"] = found
            else:
                right = found == labels
                whole = right if whole is None else whole
                row |= {"accuracy": round(100 * float(right.mean()), 2), "to_good": figures.paired(right, whole)}
            line["rows"].append(row)
            print(row, flush=True)
    return line | {"load_after": environment.load()}


def table(line: dict[str, Any]) -> str:
    """A row for each kind of data, a column for each tool."""
    found = {(row["tool"], row["data"]): row for row in line["rows"]}
    out = [f"| data | {' | '.join(TOOLS)} |", "|---" * (len(TOOLS) + 1) + "|"]
    for name in CASES:
        cells = [found[tool, name] for tool in TOOLS]
        shown = [f"{c['accuracy']:.2f} %" if "accuracy" in c else "refused" for c in cells]
        shown = [f"{text}, warned" if "warned" in c else text for text, c in zip(shown, cells, strict=True)]
        out.append(f"| {name} | {' | '.join(shown)} |")
    said = [(row, row.get("refused") or row.get("warned")) for row in line["rows"]]
    return "\n".join([*out, "", *(f"* {row['tool']}, {row['data']}: {words}" for row, words in said if words)])


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the JSON line."""
    options = parser(__doc__, RESULTS, threads=2)
    options.add_argument("--model", default="resnet20", help="of " + ", ".join(zoo.CASES))
    one_line(options, words, run, table)


if __name__ == "__main__":
    main()
