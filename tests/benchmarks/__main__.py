"""Runs the benchmarks against the peers and writes docs/benchmarks.md: ``make bench``.

usage: python -m tests.benchmarks [PART ...] [--models A,B] [--schemes A B] [--blocks N]
[--work DIR]

Parts are accuracy, methods, speed, calibration, solver, weights, large and halves; without any, all
but the last two are run: large takes about 20 GB of disk. The README's table is made anew, too.
remedies writes docs/accuracy.md cell by cell and needs torch for two of its columns;
halves writes docs/halves.md row by row and needs TensorRT for RTX; qat writes the table of
docs/qat.md and needs torch and torchao.
"""

import argparse
import datetime as dt
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from tests.assets import ASSETS, ROOT
from tests.benchmarks import (
    accuracy,
    calibration,
    halves,
    large,
    methods,
    models,
    remedies,
    solver,
    speed,
    suite,
    summary,
    weights,
)
from tests.benchmarks.table import CLOSING, Table, opening

PARTS = ("accuracy", "methods", "speed", "calibration", "solver", "weights", "large")
QAT = "qat"
PAGES = (halves.PART, remedies.PART, QAT)
"""Parts with a page of their own."""
PACKAGES = ("onnxruntime", "nncf", "onnx", "onnx-ir", "onnxscript", "numpy")


def main() -> None:
    """Parse, measure the chosen parts, write the page."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, *PAGES))
    parser.add_argument("--models", help="only these, by name, separated by commas")
    parser.add_argument(
        "--schemes", nargs="+", choices=halves.SCHEMES, default=halves.SCHEMES, help="of halves"
    )
    parser.add_argument("--columns", help="of the part remedies, separated by commas")
    parser.add_argument("--blocks", type=int, default=large.BLOCKS, help="of the large decoder")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    options = parser.parse_args()
    if not ASSETS.is_dir():
        parser.error(f"no model assets at {ASSETS}: set QCOMPILE_ASSETS")
    work = options.work.resolve()
    real, shaped, texts = list(suite.GOALS), list(models.SYNTHETIC), list(weights.MODELS)
    if options.models:
        chosen = options.models.split(",")
        real, shaped, texts = ([n for n in g if n in chosen] for g in (real, shaped, texts))
    tables = {
        "accuracy": lambda: accuracy.measure(work, real),
        "methods": lambda: methods.measure(work, [n for n in real if n != accuracy.SPEECH]),
        "speed": lambda: speed.measure(work, [*real, *shaped]),
        "calibration": lambda: calibration.measure(work),
        "solver": solver.measure,
        "weights": lambda: weights.measure(work / "weights", texts),
        "large": lambda: large.measure(work / "large", options.blocks),
    }
    whole = not options.models and options.blocks == large.BLOCKS
    page = (ROOT / "docs" if whole else work) / "benchmarks.md"
    if halves.PART in options.parts:
        named = [n for n in halves.MODELS if n in (*real, *texts)]
        _write_halves(work, named, options.schemes)
    if remedies.PART in options.parts:
        chosen = [n for n in remedies.CASES if not options.models or n in options.models.split(",")]
        _write_remedies(work, chosen, (options.columns or ",".join(remedies.COLUMNS)).split(","))
    if QAT in options.parts:
        _write_training()
    for part in (part for part in options.parts or PARTS[:-1] if part not in PAGES):
        sections = _write(page, part, tables[part]())
        if whole and part in ("accuracy", "speed"):
            readme = ROOT / "README.md"
            text = readme.read_text("utf-8")
            made = summary.filled(text, sections["accuracy"], sections["speed"], _stamp())
            readme.write_text(made, "utf-8")


def _write_halves(work: Path, names: list[str], schemes: Sequence[str]) -> None:
    """Write rows of the table of docs/halves.md; what is not measured now stays."""
    page = ROOT / "docs" / "halves.md"
    halves.update(page, work, names, schemes, _stamp(halves.PACKAGES))
    print(f"wrote {page}")


def _write_remedies(work: Path, names: list[str], columns: list[str]) -> None:
    """Write cells of the table of docs/accuracy.md; what is not measured now stays."""
    page = ROOT / "docs" / "accuracy.md"
    remedies.update(page, work, names, columns, _stamp(remedies.PACKAGES))
    print(f"wrote {page}")


def _write_training() -> None:
    """Write the table of docs/qat.md; torch is needed for this part alone."""
    from tests.benchmarks import qat

    page = ROOT / "docs" / "qat.md"
    made = qat.measure().within(page.read_text("utf-8"), QAT, _stamp(qat.PACKAGES))
    page.write_text(made, "utf-8")
    print(f"wrote {page}")


def _write(page: Path, measured: str, table: Table) -> dict[str, str]:
    """Write a part to the page; others keep their section of last time. Return all sections."""
    sections = dict.fromkeys(PARTS, "")
    if page.exists():
        for part in PARTS:
            _, _, rest = page.read_text("utf-8").partition(opening(part))
            sections[part] = rest.partition(CLOSING)[0]
    sections[measured] = f"\n{table.markdown()}\n{_stamp()}\n"
    body = [f"{opening(part)}{text}{CLOSING}" for part, text in sections.items() if text]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join([_HEAD, *body]) + "\n", "utf-8")
    print(f"wrote {page}")
    return sections


def _stamp(packages: tuple[str, ...] = PACKAGES) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    today = dt.datetime.now(dt.UTC).date()
    return f"{today}, {_cpu()}, Python {platform.python_version()}, {versions}."


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    isa = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags
    ]
    return f"{fields.get('model name', platform.machine()).strip()} ({', '.join(isa)})"


_HEAD = """# Benchmarks

Made by `make bench` (tests/benchmarks/); do not edit by hand. All tools run in one process with one
set of versions, on the same calibration samples. "ORT default" is `quantize_static` as it comes
(S8S8, per-tensor, every operator); "ORT all ops" and "ORT weighted" are U8S8, per-channel, on its
preprocessed model, for every operator and for Conv, ConvTranspose, MatMul and Gemm alone; NNCF runs
with the MIXED preset, fast bias correction, and its transformer type where it fits."""


if __name__ == "__main__":
    main()
