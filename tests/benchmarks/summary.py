"""The README's table: the best of each peer beside qcompile, out of docs/benchmarks.md."""

from collections.abc import Sequence

from tests.benchmarks import table

PART = "results"
HEAD = (
    "| model | float | best of ONNX Runtime's tool | NNCF | qcompile "
    "| speed, best peer | speed, qcompile |\n| --- | --- | --- | --- | --- | --- | --- |"
)
UNITS = {
    "yolox_nano_coco": "mAP",
    "espnetv2_s2_voc": "mIoU",
    "espcn_x3": "PSNR",
    "stories260k": "perplexity",
    "silero_vad_16k": "fraction / mean / moved",
}


def filled(readme: str, accuracy: str, speed: str, stamp: str) -> str:
    """Return the README with its table made anew.

    Args:
        readme: Its text, with the two marks.
        accuracy: That section of the benchmarks' page.
        speed: The same.
        stamp: When and on what the speed was measured.
    """
    scores, ratios = rows(accuracy), rows(speed)
    names = [*scores, *(name for name in ratios if name not in scores)]
    lines = [_line(name, scores.get(name), ratios.get(name)) for name in names]
    said = f"One thread; speed is the ratio to the float model. {stamp}"
    return table.filled(readme, PART, f"{HEAD}\n" + "\n".join(lines) + f"\n\n{said}")


def rows(section: str) -> dict[str, list[str]]:
    """Return the cells of each row of a table, by the first of them."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row for row in cells}


def _line(name: str, score: Sequence[str] | None, speed: Sequence[str] | None) -> str:
    ratios = [_ratio(speed[2:6]), speed[6].split(" (")[0]] if speed else ["", ""]
    if score is None:
        return f"| {name} (random weights) | | | | | {ratios[0]} | {ratios[1]} |"
    best = _best(score[2:5], lower=name == "stories260k")
    cells = [f"{name} ({UNITS.get(name, 'top-1')})", score[1], best, score[5], score[6], *ratios]
    return f"| {' | '.join(cells)} |"


def _ratio(cells: Sequence[str]) -> str:
    """Return the largest ratio; engines that failed have none."""
    ran = [cell.split(" (")[0] for cell in cells if "x" in cell]
    return max(ran, key=lambda cell: float(cell.removesuffix("x")), default="fails")


def _best(cells: Sequence[str], *, lower: bool) -> str:
    """Return the best score; of several figures a cell, those of the last engine."""
    single = [cell for cell in cells if cell.replace(".", "", 1).isdigit()]
    if not single:
        return cells[-1]
    return (min if lower else max)(single, key=float)
