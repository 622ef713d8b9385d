"""A training that may be killed at any moment: what the test of kills runs. Says "training", and a hash in the end."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from test_training import apart, damaged, original, stream

from tersor.maths.augment import crop
from tersor.recovery.course import Training
from tersor.recovery.loop import train
from tersor.recovery.network import Network, Teacher


def said(word: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    student = Network(damaged("narrow"))
    how = Training(epochs=3.0, rate=0.02, average=0.9, save_every=0.0)
    said("training")
    train(
        student,
        Teacher(original()),
        stream(augment=crop),
        how,
        judge=lambda network: apart(network.compressed().model),
        checkpoint=Path(sys.argv[1]) / "state",
    )
    found = hashlib.sha256()
    for name, parameter in sorted(student.parameters.items()):
        found.update(name.encode() + parameter.detach().numpy().tobytes())
    said(found.hexdigest())
