"""torch's exporter reads a table of operators in each call, which takes 0.4 s: here, once."""

import functools


def keep_operators() -> None:
    """Keep the table that the first export of this process reads; another torch goes without."""
    try:
        from torch.onnx._internal.exporter._registration import onnxscript_apis

        read = onnxscript_apis.get_torchlib_ops
    except (ImportError, AttributeError):
        return
    onnxscript_apis.get_torchlib_ops = functools.cache(read)
