"""Runs and times artifacts; the only home of onnxruntime besides emit."""
