"""Trainings whose parameters may be divided among processes: what the test of them runs, on one process and on several."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import ref

import torch
from test_training import Killed, apart, damaged, original, stream
from torch import Tensor, nn
from torch import distributed as dist

from tersor.graph.model import capture
from tersor.losses import loss_called
from tersor.losses.logit_mse import LogitMSE
from tersor.measuring.batches import Batches
from tersor.recovery import loop
from tersor.recovery.course import Training
from tersor.recovery.loop import train
from tersor.recovery.many import Alone, Group, group
from tersor.recovery.network import Network, Teacher
from tersor.recovery.sharding import LEAST, Shards
from tersor.recovery.stream import Stream
from tersor.target import Compressed

DIVIDE = 8
ALONE = Alone()
HARD: dict[str, Any] = {"average": 0.8, "decay": 0.02, "clip": 0.1}
ADAM: dict[str, Any] = {"optimiser": "adamw", "rate": 0.002}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("narrow", {"epochs": 2.0}),
    "losses": ("sparse", {"loss": loss_called("kl + feature(node='relu') + streams"), "accumulate": 2}),
    "averaged": ("sparse", HARD),
    "adam": ("narrow", ADAM | HARD),
    "binary": ("binary", {"rate": 1e-4}),
    "adapters": ("sparse", ADAM),
    "half": ("sparse", {"precision": "bf16"}),
}


def run(
    case: str, folder: Path, together: Group = ALONE, divide: int | None = None, stop: int = -1
) -> dict[str, Tensor]:
    """What becomes of a training, whole: the parameters at every step, the compressed model; and bytes of parameters."""
    kind, settings = CASES[case]
    folder.mkdir(parents=True, exist_ok=True)
    student = Network(damaged(kind), False, rank=2 * (case == "adapters"), divide=divide)
    teacher = Teacher(original(), folder, 640, divide=divide)
    states: list[Tensor] = []

    def observe(step: int, parameters: Any) -> None:
        if step == stop:
            raise Killed
        whole = [student.shards.whole(name, p.detach()) for name, p in student.parameters.items()]
        states.append(torch.cat([p.reshape(-1) for p in whole]))

    how = replace(Training(epochs=1.0, rate=0.02, save_every=0.0), **settings)
    judge = (lambda network: apart(network.compressed().model)) if case in ("averaged", "adam") else None
    checkpoint = folder.parent / f"{case}.state"
    train(student, teacher, stream(), how, judge=judge, checkpoint=checkpoint, observe=observe, group=together)
    observe(-2, None)
    found = {"states": torch.stack(states), "bytes": torch.tensor(held(student.model.module.parameters()))}
    return found | {f"out/{name}": tensor.detach() for name, tensor in student.compressed().model.tensors()}


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes in memory."""
    return sum(t.untyped_storage().nbytes() for t in tensors)


@contextmanager
def watched() -> Iterator[list[int]]:
    """Bytes of whole parameters in memory, at each time that one was made."""
    alive: list[ref[torch.UntypedStorage]] = []
    seen: list[int] = []
    made = Shards.whole

    def whole(shards: Shards, name: str, part: Tensor) -> Tensor:
        found = made(shards, name, part)
        if found is not part:
            alive.append(ref(found.untyped_storage()))
        storages = [each() for each in alive]
        seen.append(sum(s.nbytes() for s in storages if s is not None))
        return found

    with mock.patch.object(Shards, "whole", whole):
        yield seen


def wide(together: Group, divide: int | None, count: int, size: int) -> dict[str, int]:
    """Bytes that a process holds after two steps of a network of `count` layers of size x size, and at most on the way."""
    torch.manual_seed(0)
    layers = [layer for _ in range(count) for layer in (nn.Linear(size, size), nn.GELU())]
    x = torch.randn(16, size)
    model = capture(nn.Sequential(*layers), (x,))
    student, teacher = Network(Compressed(model), divide=divide), Teacher(model, divide=divide)
    optimisers: list[torch.optim.Optimizer] = []
    made = loop.optimiser_of

    def optimiser(*given: Any) -> torch.optim.Optimizer:
        optimisers.append(made(*given))
        return optimisers[0]

    del model, layers
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with mock.patch.object(loop, "optimiser_of", optimiser), watched() as seen:
        how = Training(loss=LogitMSE(), epochs=2.0, optimiser="adamw", rate=1e-4, momentum=0.9)
        train(student, teacher, Stream(Batches((Batches.of(x, size=16).parts[0],)), 16), how, group=together)
    state = [t for each in optimisers[0].state.values() for t in each.values()]
    return {
        "parameters": held(student.parameters.values()),
        "state": held(state),
        "teacher": held(teacher.model.module.parameters()),
        "whole": max(seen, default=0),
        "peak": resident("VmHWM") - before,
    }


def resident(what: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def begun(folder: Path) -> None:
    """Leave the checkpoint of a process that was killed."""
    with suppress(Killed):
        run("averaged", folder, stop=4)


def cases(folder: Path, together: Group) -> None:
    """Every case divided, and alone; one that goes on from what was alone, and one alone from what was divided."""
    rank = together.rank
    if rank == 0:
        begun(folder / "begun")
    dist.barrier()
    for case in CASES:
        torch.save(run(case, folder / f"{case}{rank}", together, DIVIDE), folder / f"{case}{rank}.pt")
    for case in list(CASES)[rank::2]:
        torch.save(run(case, folder / "alone" / case), folder / f"{case}_alone.pt")
    if rank == 0:
        torch.save(run("adam", folder / "begun"), folder / "adam_went_on.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, what, together = Path(sys.argv[1]), sys.argv[2], group()
    if what == "cases":
        cases(out, together)
        found = wide(together, LEAST, 6, 256)
    else:
        found = wide(together, LEAST if what == "divided" else None, 12, 2048)
    torch.save(found, out / f"{what}{together.rank}.pt")
