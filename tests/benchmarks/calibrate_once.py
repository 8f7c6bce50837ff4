"""One calibration in a process of its own, which imports what it needs and nothing else.

usage: python -m tests.benchmarks.calibrate_once {ORT|qcompile} METHOD MODEL DATA

Prints its peak memory in MB.
"""

import os
import sys
import tempfile
from pathlib import Path


def _ort(method: str, model: Path, data: Path) -> None:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(sorted(data.glob("*.npz")))

        def get_next(self) -> dict[str, np.ndarray] | None:
            for path in self._left:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            return None

    kind = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder, "augmented.onnx"))
        calibrator = create_calibrator(
            str(model), augmented_model_path=augmented, calibrate_method=kind[method]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def _qcompile(method: str, model: Path, data: Path) -> None:
    from qcompile.commands import calibrate
    from qcompile.recipe import recipe_from

    recipe = recipe_from({"calibration": {"method": method}})
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QCOMPILE_CACHE"] = folder
        # With evaluation data named, nothing is held back: all samples calibrate, as the peer's.
        calibrate(model, data, evaluation=min(data.glob("*.npz")), recipe=recipe)


def _peak() -> float:
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    run = {"ORT": _ort, "qcompile": _qcompile}[sys.argv[1]]
    run(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    print(_peak())
