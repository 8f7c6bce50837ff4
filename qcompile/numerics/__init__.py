"""Arrays only: grids, range search, error metrics. Nothing here knows ONNX."""
