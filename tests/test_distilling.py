"""`tersor.distil`: a student learns what its teacher knows, from the teacher alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stripes
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import InputError


class Narrow(nn.Module):
    """Half as wide as its teacher, and without the residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_a_student_that_knew_nothing_learns_without_labels(tmp_path: Path):
    torch.manual_seed(0)
    student, out = Narrow().eval(), tmp_path / "student.pt2"
    data = [x for x, _ in stripes.batches()]
    held = [stripes.images(400, 7)]
    how = tersor.Recovery.of("10epochs", rate=0.1, batch=64)
    found = tersor.distil(
        student,
        [(x, torch.zeros(len(x), dtype=torch.long)) for x in data],
        teacher=stripes.trained(),
        recover=how,
        eval_data=held,
        threads=1,
        out=out,
    )
    assert found.untrained < 0.5
    assert found.after > 0.85
    assert found.macs[1] < 0.3 * found.macs[0]
    x = held[0][0]
    again = torch.export.load(out).module(check_guards=False)  # without Tersor
    torch.testing.assert_close(again(x), found.module(x))
    assert json.loads(json.dumps(found.to_json()))["trained"]["steps"] == found.trained.steps
    second = tersor.distil(
        student,
        [(x, torch.zeros(len(x), dtype=torch.long)) for x in data],
        teacher=stripes.trained(),
        recover=how,
        eval_data=held,
        threads=1,
    )  # out of the cache
    assert second.model.digest() == found.model.digest()


def test_inner_activations_teach_through_a_learned_matrix():
    torch.manual_seed(0)
    how = tersor.Recovery.of("4epochs", loss="kl + feature(node='relu', teacher='relu')", rate=0.05, batch=64)
    found = tersor.distil(Narrow().eval(), stripes.batches(), teacher=stripes.trained(), recover=how, threads=1)
    assert found.trained.losses[-1][1] < 0.95 * found.trained.losses[0][1]


def test_a_student_of_another_shape_or_without_time_is_refused():
    with pytest.raises(InputError, match=r"The student gives \(2, 7\) where the teacher gives \(2, 4\)"):
        tersor.distil(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), stripes.batches(), teacher=stripes.trained(), threads=1
        )
    with pytest.raises(InputError, match="recover is none, and a student learns nothing in no time"):
        tersor.distil(Narrow(), stripes.batches(), teacher=stripes.trained(), recover="none")
