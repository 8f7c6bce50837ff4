"""One weight-only quantization in a process of its own, which imports what it needs and no more.

usage: python -m tests.benchmarks.weights_once {ORT|qcompile} OPTIONS MODEL DATA FOLDER

OPTIONS are those of ``qcompile.recipe.Weights`` as JSON; ORT knows ``algorithm`` rtn and gptq. The
model becomes FOLDER/model.onnx. Prints, as JSON, the peak memory in MB and the seconds that it took
to quantize: loading and writing are counted, imports, comparison and timing are not.
"""

import json
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

UNCOUNTED = ("compare", "time")


def _ort(options: dict[str, Any], model: Path, data: Path, folder: Path) -> float:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            found = [np.load(path, allow_pickle=False) for path in sorted(data.glob("*.npz"))]
            self._left = iter([dict(file) for file in found])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    gptq = options["algorithm"] == "gptq"
    if gptq:
        _stand_in_for_torch()
    started = time.perf_counter()
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        str(model),
        bits=options["bits"],
        block_size=options["group_size"],
        is_symmetric=not options.get("asymmetric", False),
        accuracy_level=options.get("accuracy_level") or None,
        algo_config=matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(Reader()) if gptq else None,
    )
    quantizer.process()
    folder.mkdir(parents=True, exist_ok=True)
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), False)
    return time.perf_counter() - started


def _stand_in_for_torch() -> None:
    """ORT's GPTQ asks torch for a GPU, and whether samples are its tensors; neither is so here."""
    torch: Any = ModuleType("torch")
    torch.__spec__ = ModuleSpec("torch", None)
    torch.Tensor = type("Tensor", (), {})
    torch.cuda = SimpleNamespace(is_available=lambda: False)
    sys.modules.setdefault("torch", torch)


def _qcompile(options: dict[str, Any], model: Path, data: Path, folder: Path) -> float:
    from qcompile.pipeline import build
    from qcompile.recipe import recipe_from

    gates = {"allow_slower": True}
    recipe = recipe_from({"scheme": "weight-only", "weights": options, "gates": gates})
    # With evaluation data named, nothing is held back: all samples calibrate, as the peer's.
    evaluation = min(data.glob("*.npz"))
    report = build(
        model, calib=data, evaluation=evaluation, output=folder, recipe=recipe, force=True
    )
    return sum(took for stage, took in report.seconds.items() if stage not in UNCOUNTED)


def _peak() -> float:
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    quantize = {"ORT": _ort, "qcompile": _qcompile}[sys.argv[1]]
    seconds = quantize(json.loads(sys.argv[2]), *map(Path, sys.argv[3:6]))
    print("\n" + json.dumps({"peak": _peak(), "seconds": seconds}))  # the peer leaves its line open
