"""Reads models: ONNX files into onnx_ir."""
