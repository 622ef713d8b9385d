"""What a job holds: which items are for what."""

from __future__ import annotations

import re
import warnings

import pytest
import stripes
import torch
from torch import nn

from tersor.errors import DataWarning, InputError
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


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (lambda ids: ids, "The labels are the inputs themselves"),
        (lambda ids: ids[:, :3], r"The labels \(40, 3\) fit no output of the model \(\(2, 6, 9\) for a batch of 2\)"),
        (lambda ids: ids.roll(-1, 1), None),
    ],
)
def test_labels_that_can_hardly_be_meant_are_named(labels, said) -> None:
    net, ids = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).eval(), torch.arange(240).reshape(40, 6) % 7
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bring((net, ids[:2]), [(ids, labels(ids))], "agreement", 0.0, None, 1, 1, 0, (), None, quiet)
    told = [str(each.message) for each in caught if issubclass(each.category, DataWarning)]
    assert (len(told) == 1 and re.match(said, told[0])) if said else not told
