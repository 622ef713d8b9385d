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
    tolerance = 0.1


class TestOnnxRuntimeInt8Signed(TargetLaws):
    target = OnnxRuntime("int8", "signed")
    tolerance = 0.1


class TestOnnxRuntimeInt8Outputs(TargetLaws):
    target = OnnxRuntime("int8", "outputs")
    tolerance = 0.1


class TestOpenVINOInt8Signed(TargetLaws):
    target = OpenVINO("int8", "signed")
    tolerance = 0.1


class TestOpenVINO(TargetLaws):
    target = OpenVINO("fp32")
