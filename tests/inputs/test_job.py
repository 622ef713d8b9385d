"""What a job holds: which items are for what."""

from __future__ import annotations

import pytest
import stripes
import torch

from tersor.errors import InputError
from tersor.inputs.job import Job, bring, calibrating_on_all, quiet


@pytest.fixture(scope="module")
def job() -> Job:
    return bring(stripes.trained(), stripes.batches(), "accuracy", 0.0, None, 1, 1, 0, (), None, quiet)


def items(*parts) -> set[bytes]:
    return {bytes(x.numpy().tobytes()) for part in parts for batch in part for x in batch.inputs[0]}


def test_parts_are_disjoint_and_whole(job: Job) -> None:
    parts = (job.training, job.held, job.evaluation)
    assert len(items(*parts)) == sum(map(len, parts)) == sum(len(x) for x, _ in stripes.batches())
    assert items(job.calibration) <= items(job.training)


def test_who_chooses_nothing_calibrates_on_all_training_data_and_on_no_evaluation(job: Job) -> None:
    wide = calibrating_on_all(job)
    assert items(wide.training) == items(job.training, job.held)
    assert items(wide.calibration) <= items(wide.training)
    assert len(wide.calibration) == min(1024, len(wide.training))
    assert not items(wide.calibration) & items(job.evaluation)


def test_a_layer_to_leave_alone_must_exist() -> None:
    data = [(torch.randn(64, 1, 12, 12), torch.zeros(64, dtype=torch.long))]
    with pytest.raises(
        InputError, match=r"exclude names 'body', which is not a layer of this model; similar names: body.0"
    ):
        bring(stripes.trained(), data, "accuracy", 0.0, None, 1, 1, 0, ("body",), None, quiet)
