"""A training on this process and, where torch.distributed was told of others, on those: what the test of many runs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_training import damaged, original, stream

from tersor.recovery.course import Training
from tersor.recovery.loop import train
from tersor.recovery.many import group
from tersor.recovery.network import Network, Teacher

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, kind, kill = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    together, divide = group(), int(sys.argv[4]) or None
    student = Network(damaged(kind), moving_norms=False, divide=divide)
    states = []

    def look() -> None:
        whole = [student.shards.whole(name, p.detach()) for name, p in student.parameters.items()]
        states.append(torch.cat([p.reshape(-1) for p in whole]))

    def observe(step: int, parameters) -> None:
        look()
        marker = out / f"killed{together.rank}"
        if step == kill and not marker.exists():
            marker.touch()
            raise SystemExit(3)

    how = Training(epochs=1.0, rate=0.02, save_every=0.0)
    teacher = Teacher(original(), divide=divide)
    train(student, teacher, stream(), how, checkpoint=out / "state", observe=observe, group=together)
    look()
    torch.save(torch.stack(states), out / f"states{together.rank}.pt")
