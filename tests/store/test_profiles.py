from __future__ import annotations

from pathlib import Path

import torch

from tersor.profile import Facts, Profile, Range
from tersor.store.cache import Cache
from tersor.store.profiles import remembered


def test_measured_once_and_the_same_afterwards(tmp_path: Path) -> None:
    gram = torch.eye(3, dtype=torch.float64)[None]
    seen = Range(-1.0, 2.0, torch.ones(4), torch.linspace(-1, 2, 5), (-0.5, 1.0))
    fisher, activity = torch.ones(2, dtype=torch.float64), torch.ones(1, 2, 2, dtype=torch.float64)
    made = Profile({"fc": Facts(gram, fisher, activity, gradient=2 * gram)}, {"x": seen}, 7)
    calls = []

    def measure() -> Profile:
        calls.append(1)
        return made

    for _ in range(2):
        found = remembered(Cache(tmp_path), "abc", measure)
        assert torch.equal(found.facts["fc"].gram, gram)
        assert torch.equal(found.facts["fc"].activity, activity)
        assert torch.equal(found.facts["fc"].gradient, 2 * gram)
        assert (found.ranges["x"].low, found.ranges["x"].high, found.items) == (-1.0, 2.0, 7)
    assert len(calls) == 1
    for entry in tmp_path.iterdir():
        entry.write_bytes(entry.read_bytes()[:-3])
    remembered(Cache(tmp_path), "abc", measure)
    assert len(calls) == 2
