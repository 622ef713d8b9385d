"""The shipped targets obey the laws that a new one inherits."""

from __future__ import annotations

from laws_target import TargetLaws

from tersor.targets.eager import Eager
from tersor.targets.onnxruntime import OnnxRuntime
from tersor.targets.openvino import OpenVINO


class TestEager(TargetLaws):
    target = Eager()


class TestOnnxRuntime(TargetLaws):
    target = OnnxRuntime("fp32")


class TestOnnxRuntimeInt8(TargetLaws):
    target = OnnxRuntime("int8")
    simulated = "onnxruntime"


class TestOnnxRuntimeInt8Signed(TargetLaws):
    target = OnnxRuntime("int8", "signed")
    simulated = "onnxruntime"


class TestOpenVINOInt8Signed(TargetLaws):
    target = OpenVINO("int8", "signed")
    simulated = "openvino"


class TestOpenVINO(TargetLaws):
    target = OpenVINO("fp32")
