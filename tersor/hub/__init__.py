"""QDQ ONNX, the format through which grids reach the runtimes: export, placement, simulation."""
