"""The pass protocol and what all passes share, on onnx_ir."""
