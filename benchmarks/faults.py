"""Kill `tersor compress` over an existing artifact, and damage artifacts: what survives, and what is refused.

    python -m benchmarks.faults [--kills 100] [--corruptions 200] [--out benchmarks/results/faults.jsonl]

Kills: SIGKILL at random moments of every stage in turn, and at least 16 within the exchange itself (before the
flush, before and after the exchange of the folders, while the old one is removed). After each the folder must verify as
the old or the new artifact. At the end the same command must finish, and nothing may be left in TMPDIR, in the cache (but
entries) and beside the folder.
Corruptions: one random change (a flipped bit, a cut, a byte more, a file gone, a file more, two files swapped) in a copy of
the artifact, the manifest included; `verify` and `load` must both refuse.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tersor
from benchmarks.environment import record
from tersor.errors import ArtifactError

WHERE = ("flush", "before the exchange", "after the exchange", "removal")

WRAPPED = """
import os, signal, sys
from tersor.store import files
where = {where!r}
def dead(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if where == "flush":
    files.flush = dead
elif where == "before the exchange":
    files._put = dead
elif where == "after the exchange":
    put = files._put
    files._put = lambda *a: (put(*a), dead())
else:
    rmtree = files.shutil.rmtree
    def removing(path, *a, **k):
        if ".tersor-" in str(path) and os.path.exists(os.path.join(path, "manifest.json")):
            os.remove(os.path.join(path, "manifest.json"))
            dead()
        return rmtree(path, *a, **k)
    files.shutil.rmtree = removing
from tersor.cli import main
sys.argv[0] = "tersor"
main()
"""


def subject(folder: Path) -> list[str]:
    """A small trained-looking network and data; gives the arguments of the command."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    ).eval()
    x = torch.randn(600, 1, 8, 8)
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, folder / "model.pt2")
    with torch.no_grad():
        np.savez(folder / "data.npz", x=x.numpy(), y=module(x).argmax(1).numpy())
    return [
        "compress", str(folder / "model.pt2"), "--data", str(folder / "data.npz"), "--max-drop", "5%",
        "--target", "onnxruntime", "--threads", "1", "--time-limit", "60s",
    ]  # fmt: skip


@dataclass
class Ended:
    """How a command ended: its exit code, and when it announced each stage, in seconds from its start."""

    code: int
    stages: list[str] = field(default_factory=lambda: ["starting"])
    begun: list[float] = field(default_factory=lambda: [0.0])


def run(arguments: list[str], cache: Path, kill: tuple[int, float] | None = None, where: str | None = None) -> Ended:
    """Run one command; killed so many seconds after its stage of that number began, or at a place in the exchange."""
    code = WRAPPED.format(where=where) if where else "from tersor.cli import main\nmain()\n"
    with tempfile.TemporaryFile("w+") as said:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            env={
                **os.environ,
                "TERSOR_CACHE": str(cache),
                "TMPDIR": str(_scratch(cache)),
                "TORCHINDUCTOR_CACHE_DIR": str(cache.parent / "torch"),
            },
        )
        ended = Ended(0)
        while process.poll() is None:
            now = time.monotonic() - start
            said.seek(0)
            for line in [_plain(line) for line in said.read().split("\n")[:-1] if line.strip()][
                len(ended.stages) - 1 :
            ]:
                ended.stages.append(line)
                ended.begun.append(now)
            if kill is not None and len(ended.stages) > kill[0] and now >= ended.begun[kill[0]] + kill[1]:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.005)
        return replace(ended, code=process.returncode)


def kills(count: int, seed: int) -> dict:
    """Kill the command `count` times; what the folder was afterwards."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arguments, cache = [*subject(folder), "--out", str(folder / "out")], folder / "cache"
        start = time.monotonic()
        first = run([*arguments, "--seed", "0"], cache)
        whole = time.monotonic() - start
        if first.code:
            raise SystemExit(f"the command failed before any kill: {first.stages[-1]}")
        lasts = [b - a for a, b in zip(first.begun, [*first.begun[1:], whole], strict=True)]
        old = digest(folder / "out")
        stages: collections.Counter[str] = collections.Counter()
        verified = replaced = 0
        for k in range(count):
            stage, where = k % len(lasts), WHERE[k % len(WHERE)] if k >= count - max(16, count // 6) else None
            ended = run(
                [*arguments, "--seed", str(k + 1)],
                cache,
                None if where else (stage, rng.random() * lasts[stage]),
                where,
            )
            stages[where or ended.stages[-1] if ended.code == -signal.SIGKILL else "finished before the kill"] += 1
            try:
                tersor.verify(folder / "out", threads=1)
                verified += 1
            except ArtifactError as broken:
                print(f"kill {k} ({where or ended.stages[-1]}): {broken}", file=sys.stderr)
            now = digest(folder / "out")
            replaced += now != old
            old = now
            print(f"kill {k + 1}/{count}: {verified} verified", file=sys.stderr, flush=True)
        start = time.monotonic()
        # the last one again: it goes on from what was finished
        last = run([*arguments, "--seed", str(count)], cache)
        again = time.monotonic() - start
        tersor.verify(folder / "out", threads=1)
        left = sorted(p.name for p in folder.iterdir() if ".tersor-" in p.name)
        left += sorted(str(p.relative_to(folder)) for p in _scratch(cache).iterdir())
        left += sorted(str(p.relative_to(folder)) for p in cache.iterdir() if p.suffix != ".safetensors")
        return {
            "kills": count, "verified": verified, "new_artifact_after_kill": replaced, "stages": dict(stages),
            "finished_afterwards": last.code == 0, "left_behind": left, "seconds_of_command": round(whole, 1),
            "seconds_of_the_last_again": round(again, 1),
        }  # fmt: skip


def _scratch(cache: Path) -> Path:
    """What is TMPDIR to a command with this cache."""
    folder = cache.parent / "tmp"
    folder.mkdir(exist_ok=True)
    return folder


def _plain(line: str) -> str:
    """A stage as announced, without its figures."""
    return " ".join(word for word in line.split() if word.isalpha())[:40]


def digest(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["sha256"]


def corruptions(count: int, seed: int) -> dict:
    """Change copies of an artifact at random; how many were refused."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ended = run([*subject(folder), "--out", str(folder / "out")], folder / "cache")
        if ended.code:
            raise SystemExit(f"the command failed: {ended.stages[-1]}")
        refused: collections.Counter[str] = collections.Counter()
        kinds: collections.Counter[str] = collections.Counter()
        for k in range(count):
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder / "out", copy)
            kind = corrupt(copy, rng)
            kinds[kind] += 1
            for name, opened in (("verify", tersor.verify), ("load", tersor.load)):
                try:
                    opened(copy, threads=1)
                    print(f"corruption {k} ({kind}) was not refused by {name}", file=sys.stderr)
                except ArtifactError:
                    refused[name] += 1
        return {
            "corruptions": count,
            "refused_by_verify": refused["verify"],
            "refused_by_load": refused["load"],
            "kinds": kinds,
        }


def corrupt(folder: Path, rng: random.Random) -> str:
    """One random change to one random file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    kind = rng.choice(["bit", "bit", "bit", "cut", "byte more", "file gone", "file more", "swap", "zeroed"])
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "byte more":
        data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
    elif kind == "zeroed":
        at = rng.randrange(len(data))
        data[at : at + 64] = bytes(b ^ 0xFF for b in data[at : at + 64])
    if kind in ("bit", "cut", "byte more", "zeroed"):
        path.write_bytes(data)
    elif kind == "file gone":
        path.unlink()
    elif kind == "file more":
        (path.parent / f"more{rng.randrange(10**6)}.bin").write_bytes(rng.randbytes(16))
    else:
        other = rng.choice([f for f in files if f != path])
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)
    return kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.jsonl"))
    asked = parser.parse_args()
    found = {"benchmark": "faults", **record(), "seed": asked.seed}
    found |= corruptions(asked.corruptions, asked.seed)
    found |= kills(asked.kills, asked.seed)
    print(json.dumps(found, indent=1))
    with asked.out.open("a") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
