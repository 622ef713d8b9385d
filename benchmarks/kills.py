"""Kills: `compress` is killed at 90 random moments and at 10 moments of the exchange; what stands in `--out` is always whole.

    python -m benchmarks.kills                             # 100 kills; some minutes
    python -m benchmarks.kills --random 4 --exchange 2

After each kill the folder is checked as `tersor.verify` does. In the end the command runs once to its end, and nothing may be
left in TMPDIR, in the cache (but entries) or beside the folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environment

_EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "open")


def command(out: Path, target: str) -> list[str]:
    """What is killed."""
    words = ["compress", "benchmarks.limits:tiny", "--data", "benchmarks.limits:data_tiny", "--metric", "agreement"]
    return [*words, "--max-drop", "2%", "--target", target, "--threads", "1", "--out", str(out)]


def killing(number: int, out: Path, target: str) -> None:
    """In a process of its own: the command, killed at the `number`-th event that touches `out` from its exchange on."""
    seen = -1

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in _EVENTS and arguments and f".{out.name}.tersor-" in str(arguments[0]):
            begins = event == "os.rename" and str(arguments[1]).endswith(out.name)
            seen += 1 if seen >= 0 or begins else 0
            if seen >= number and seen >= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    from tersor.cli.app import run

    run(command(out, target))


def main(words: Sequence[str] | None = None) -> None:
    """Kill, look, and count."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--random", type=int, default=90)
    parser.add_argument("--exchange", type=int, default=10)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    from tersor.delivery import verify

    place = Path(tempfile.mkdtemp(prefix="kills-"))
    out, scratch, cache = place / "out" / "small", place / "tmp", place / "cache"
    scratch.mkdir()
    env = {
        **os.environ,
        "TMPDIR": str(scratch),
        "TERSOR_CACHE": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(place / "torch"),
    }

    def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            [sys.executable, "-m", *words], stdout=quiet, stderr=quiet, env=env, cwd=environment.ROOT
        )

    begin = time.monotonic()
    if start(["tersor", *command(out, asked.target)]).wait():
        raise SystemExit("the command itself fails")
    lasts, drawn, killed, whole = time.monotonic() - begin, random.Random(asked.seed), 0, 0
    for number in range(asked.random + asked.exchange):
        if number < asked.random:
            shutil.rmtree(cache, ignore_errors=True)  # so that it has all of its work before it
            process = start(["tersor", *command(out, asked.target)])
            time.sleep(drawn.uniform(0.0, lasts))
            process.send_signal(signal.SIGKILL)
        else:
            process = start(["benchmarks.kills", "killing", str(number - asked.random), str(out), asked.target])
        killed += process.wait() == -signal.SIGKILL
        verify(out, threads=1)
        whole += 1
    ended = start(["tersor", *command(out, asked.target)]).wait()
    left = [str(p) for p in scratch.iterdir()]
    left += [str(p) for p in cache.iterdir() if p.suffix != ".safetensors"]
    left += [str(p) for p in out.parent.iterdir() if p != out]
    print(
        f"{killed} of {number + 1} were killed before they ended; {whole} times the folder was whole; then exit code {ended}"
    )
    print(f"left over: {', '.join(left) or 'nothing'}")
    shutil.rmtree(place)
    if left or ended:
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["killing"]:
        killing(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        main()
