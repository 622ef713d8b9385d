"""The architecture zoo: every prunable group of every entry is cut by 30 %, and nothing else may change."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from verdict import TOLERANCE, judge, through_onnx
from zoo_all import ARCHITECTURES

from tersor.graph.model import capture


def _parameters() -> list:
    return [pytest.param(n, marks=() if a.fast else pytest.mark.slow) for n, a in ARCHITECTURES.items()]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_zoo_is_large() -> None:
    assert len(ARCHITECTURES) >= 85


@pytest.mark.parametrize("name", _parameters())
def test_a_third_less_of_everything(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    if architecture.transformers and find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    seen = judge(architecture, tmp_path)
    assert seen.pruned
    assert seen.difference <= TOLERANCE
    assert seen.sensitivity > 1e-3, "the output does not depend on the input"
    assert seen.parameters[1] < seen.parameters[0]
    assert seen.macs[1] < seen.macs[0]
    assert seen.share >= architecture.least, seen.reasons
    assert architecture.least >= 0.6 or architecture.because
    if architecture.unexported:
        assert architecture.unexported in through_onnx(capture(*architecture.built()), tmp_path)[1]
    else:
        assert seen.exported is not None, seen.refusal
        assert seen.exported <= TOLERANCE
