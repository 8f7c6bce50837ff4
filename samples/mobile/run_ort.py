"""Loads an ORT-format model as an app does, from bytes, and scores it on the digits sample."""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

DATA = Path(__file__).resolve().parent.parent / "digits" / "eval.npz"


def main(model: Path) -> None:
    """Print the time to load and the accuracy."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.load_model_format", "ORT")
    options.add_session_config_entry("session.use_ort_model_bytes_directly", "1")
    content = model.read_bytes()
    started = time.perf_counter()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    print(f"loaded {len(content):,} bytes in {1000 * (time.perf_counter() - started):.1f} ms")
    with np.load(DATA, allow_pickle=False) as images:
        logits = session.run(None, {"image": images["image"]})[0]
        right = logits.argmax(1) == images["label"]
    print(f"accuracy {right.mean():.4f} on {right.size} images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
