"""Builds the digits sample for each execution provider and sets size and placement side by side."""

import sys
from pathlib import Path

import qcompile
from qcompile.targets import TARGETS

DIGITS = Path(__file__).resolve().parent.parent / "digits"


def main(folder: Path) -> None:
    """Build into ``folder``; CoreML has no int8, it gets halves."""
    target = TARGETS["ort-mobile"]
    for name in target.devices:
        scheme = "int8" if "int8" in target.schemes(name) else "fp16"
        recipe = qcompile.Recipe.model_validate(
            {"target": target.name, "ep": name, "scheme": scheme}
        )
        report = qcompile.build(
            DIGITS / "digits.onnx",
            calib=DIGITS / "calib.npz",
            evaluation=DIGITS / "eval.npz",
            output=folder / name,
            recipe=recipe,
            force=True,
        )
        made = report.delivery
        placed = ", ".join(f"{where} {count}" for where, count in made.placed.items())
        print(f"{name:8} {scheme:5} {made.bytes:7,} bytes  {placed or 'one provider'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
