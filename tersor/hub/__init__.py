"""The hub format: ONNX with QuantizeLinear/DequantizeLinear, from which every integer runtime is served."""
