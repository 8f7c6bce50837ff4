"""Builds an int8 engine through the Python interface, reads its report and runs it."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

import qcompile

DIGITS = Path(__file__).resolve().parent.parent / "digits"


def main(output: Path) -> None:
    """Build into ``output``, print the accuracy and classify the first image."""
    recipe = qcompile.Recipe(gates=qcompile.Gates(max_drop=0.005, allow_slower=True))
    try:
        report = qcompile.build(
            DIGITS / "digits.onnx",
            calib=DIGITS / "calib.npz",
            evaluation=DIGITS / "eval.npz",
            output=output,
            recipe=recipe,
            force=True,
        )
    except qcompile.GateError as error:
        sys.exit(f"the engine is not good enough: {error}")
    for score in report.engine.scores:
        print(f"{score.name}: float {score.float_value:.4f}, engine {score.engine_value:.4f}")
    engine = ort.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(DIGITS / "eval.npz", allow_pickle=False) as images:
        logits = engine.run(None, {"image": images["image"][:1]})[0]
        print(f"label {images['label'][0]}, engine says {logits.argmax()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
