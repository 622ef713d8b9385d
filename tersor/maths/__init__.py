"""Tensors in, tensors out; knows no model. Names follow the papers."""
