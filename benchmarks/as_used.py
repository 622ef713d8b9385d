"""What is reported beside what a user gets: the report's time, the README's lines in a fresh process, and ONNX Runtime fp32.

    python -m benchmarks.as_used                      # eight networks, one JSON line each

Each network is compressed as a user would, then the lines of the artifact's README are run as they stand in a process that has
no Tersor, and so are those for the plain export. A machine that others share is now faster, now slower by a third, so that
times of one minute say little about those of the next: each start of the README's lines has one of `tersor benchmark` and one
of the plain export right beside it, and ratios are medians over such triples, with a bootstrap interval. Run it with nothing
else running: half of the networks take less than 0.1 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tersor
from benchmarks import environment, zoo
from tersor.graph.model import capture
from tersor.target import Compressed, Input
from tersor.targets.onnxruntime import OnnxRuntime

RESULTS = environment.ROOT / "benchmarks" / "results" / "as_used.jsonl"
ITEMS = 2000
TIMED = """
import sys, time
sys.modules["tersor"] = None
import numpy
loaded = numpy.load({inputs!r})
{values}
{setup}
def call():
    return {call}
seen, begin = [], time.perf_counter()
while time.perf_counter() - begin < 0.3:
    call()
for _ in range({rounds}):
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.01:
        call()
        count += 1
    seen.append((time.perf_counter() - begin) / count)
print(sorted(seen)[len(seen) // 2])
"""


class Steps(nn.Module):
    """A voice detector's shape: a small recurrent network over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Towers(nn.Module):
    """A recommender's shape: two towers over embeddings, and their product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(1000, 32), nn.Embedding(2000, 32)
        self.user, self.item = (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(2))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(self.users(user)) * self.item(self.items(item))).sum(-1, keepdim=True)


def _mlp(*widths: int) -> nn.Module:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _drawn(*shape: int) -> Tensor:
    return torch.randn(ITEMS, *shape, generator=torch.Generator().manual_seed(1))


def _users_and_items() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 1000, (ITEMS,), generator=g), torch.randint(0, 2000, (ITEMS,), generator=g)


def _trained(key: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    parts = [torch.from_numpy(np.array(zoo.part(key, name)[0])) for name in ("calibration", "search")]
    return zoo.module(key), (torch.cat(parts)[:ITEMS],)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "dense_autoencoder": lambda: (_mlp(640, 128, 128, 8, 128, 128, 640), (_drawn(640),)),
    "small_mlp": lambda: (_mlp(32, 64, 64, 10), (_drawn(32),)),
    "two_towers": lambda: (Towers(), _users_and_items()),
    "gru": lambda: (Steps(), (_drawn(8, 16),)),
    **{key: (lambda key=key: _trained(key)) for key in zoo.CASES},  # type: ignore[misc]
}


def of_lines(lines: str, folder: Path, names: Sequence[str], inputs: Sequence[np.ndarray], rounds: int) -> float:
    """Median seconds of the last line, in a process of its own that knows no Tersor."""
    setup, _, last = lines.strip().rpartition("\noutputs = ")
    file = folder.parent / f"{folder.name}.inputs.npz"
    np.savez(file, **{f"{i:03d}": a for i, a in enumerate(inputs)})  # type: ignore[arg-type]
    tensor = "torch" in setup.partition("def ")[0]
    values = "import torch\n" if tensor else ""
    values += "\n".join(
        f"{name} = torch.from_numpy(loaded['{i:03d}'])" if tensor else f"{name} = loaded['{i:03d}']"
        for i, name in enumerate(names)
    )
    code = TIMED.format(inputs=str(file), values=values, setup=setup, call=last.partition("  #")[0], rounds=rounds)
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return float(told.stdout)


def run(key: str, given: argparse.Namespace) -> dict[str, Any]:
    """The line of one network."""
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    module, data = NETWORKS[key]()
    module = module.eval()
    line = environment.record(benchmark="as_used", model=key, rounds=given.rounds, threads=given.threads)
    with TemporaryDirectory() as scratch:
        out, plain = Path(scratch) / "small", Path(scratch) / "plain"
        pieces = list(zip(*(t.split(100) for t in data), strict=True))
        model = capture(module, tuple(t[:2] for t in data))
        batches = [dict(zip(model.inputs, piece, strict=True)) if len(piece) > 1 else piece[0] for piece in pieces]
        report = tersor.compress(
            module, batches, metric="cosine", max_drop="1%", target=given.target, out=out, threads=given.threads
        )
        plain.mkdir()
        used = Path(scratch) / "used"
        shutil.copytree(out / "model", used)
        OnnxRuntime().export(Compressed(model), plain)
        inputs = [t[:1].numpy() for t in data]
        shapes = [Input(n, str(a.dtype), a.shape) for n, a in zip(model.inputs, inputs, strict=True)]
        export = OnnxRuntime().usage(shapes, OnnxRuntime().load(plain, 1).outputs, given.threads)
        readme = (out / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
        taken: dict[str, list[float]] = {"clock": [], "readme": [], "onnxruntime": []}
        for _ in range(given.starts):
            clocked = tersor.benchmark([out], threads=given.threads, rounds=given.rounds)
            taken["clock"].append(clocked.median(str(out)))
            taken["readme"].append(of_lines(readme, used, model.inputs, inputs, given.rounds))
            taken["onnxruntime"].append(of_lines(export, plain, model.inputs, inputs, given.rounds))
    assert report.after.seconds is not None
    line |= {
        "chosen": report.after.name,
        "reported": [report.after.seconds.low, report.after.seconds.value, report.after.seconds.high],
        "clock": taken["clock"],
        "readme": taken["readme"],
        "onnxruntime_fp32": taken["onnxruntime"],
        "readme_over_clock": ratio(taken["readme"], taken["clock"]),
        "readme_over_onnxruntime_fp32": ratio(taken["readme"], taken["onnxruntime"]),
        "noise": None if report.noise is None else [report.noise.low, report.noise.value, report.noise.high],
        "compression": report.compression_verdict,
    }
    return line | {"load_after": environment.load()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """[low, median, high] of the ratios of what was measured side by side; 95 % bootstrap."""
    each = np.array(ours) / np.array(theirs)
    drawn = np.median(each[np.random.default_rng(0).integers(len(each), size=(4000, len(each)))], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(np.median(each)), float(high)]


def table(line: dict[str, Any]) -> str:
    """The figures in a row: the medians, and the lowest and highest of each."""
    low, reported, high = (1e3 * s for s in line["reported"])
    cells = [f"{reported:.4g} [{low:.4g}, {high:.4g}]"]
    for name in ("clock", "readme", "onnxruntime_fp32"):
        seen = sorted(1e3 * s for s in line[name])
        cells.append(f"{statistics.median(seen):.4g} [{seen[0]:.4g}, {seen[-1]:.4g}]")
    for name in ("readme_over_clock", "readme_over_onnxruntime_fp32"):
        low, middle, high = line[name]
        cells.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
    return f"| {line['model']} | {line['chosen']} | {' | '.join(cells)} |"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, append one JSON line a network, print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(NETWORKS), help="of " + ", ".join(NETWORKS))
    parser.add_argument("--target", default="onnxruntime,openvino")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--starts", type=int, default=11, help="fresh processes of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    print(
        "| network | chosen | reported ms | clock again ms | README's lines ms | ONNX Runtime fp32 ms | README / clock | "
        "README / ONNX Runtime fp32 |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for key in given.models.split(","):
        line = json.loads(json.dumps(run(key, given)))
        environment.append(given.out, line)
        print(table(line), flush=True)


if __name__ == "__main__":
    main()
