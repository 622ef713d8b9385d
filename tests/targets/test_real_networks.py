"""The four trained networks: every heavy operator in int8, and the runtime computes what the simulation says."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hubzoo import quantised

from tersor.graph.model import capture
from tersor.rewrites.fold_norms import fold_norms
from tersor.target import Compressed
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.targets.openvino import OpenVINO

pytestmark = pytest.mark.realdata
OTHERS_ARE_SLOW = [
    "kws",
    pytest.param("resnet20", marks=pytest.mark.slow),
    pytest.param("resnet56", marks=pytest.mark.slow),
    pytest.param("mobilenet", marks=pytest.mark.slow),
]
HEAVY = {"kws": 10, "resnet20": 20, "resnet56": 56, "mobilenet": 28}
AGREE = {OnnxRuntime: 0.999, OpenVINO: 0.995}


@cache
def network(loaders, name: str) -> tuple[Compressed, np.ndarray]:
    """The network in 8 bits (extremes of a few calibration items), and items that it has not seen."""
    if name == "kws":
        x, _ = loaders.kws()
        module, calibration, test = loaders.kws_dscnn(), x[0::2], x[1::2]
    elif name == "mobilenet":
        items = [x for (x, _), _ in zip(loaders.imagenet_sample(), range(120), strict=False)]
        x = torch.stack(items)
        module, calibration, test = loaders.mobilenet_v1_075(), x[0::2][:40], x[1::2]
    else:
        module = loaders.resnet_cifar(int(name[6:]))
        calibration = loaders.cifar_norm(loaders.cifar10("train")[0][:200])
        test = loaders.cifar_norm(loaders.cifar10("test")[0][:400])
    model = fold_norms(capture(module, (calibration[:2],)))
    return quantised(model, [(part,) for part in calibration.split(40)]), test.contiguous().numpy()


@pytest.mark.parametrize("name", OTHERS_ARE_SLOW)
@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVINO])
def test_all_in_int8_and_as_simulated(loaders, kind, name, tmp_path: Path):
    made, test = network(loaders, name)
    target = kind("int8")
    target.export(made, tmp_path)
    audit = target.load(tmp_path).audit()
    assert audit.count("i8") == len(audit.operators) == HEAVY[name], audit
    fidelity = target.fidelity(tmp_path, [test])
    assert fidelity.agreement >= AGREE[kind], fidelity
    if kind is OnnxRuntime:  # bit for bit
        assert fidelity.parts is None, fidelity
        assert fidelity.largest == 0.0, fidelity
