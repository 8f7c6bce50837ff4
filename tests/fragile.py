"""A net of which one layer is fragile, and samples with the decisions of the float net."""

from pathlib import Path

import numpy as np

from qcompile.runtime.ort import Session
from tests.tiny import weight, write_net

LAYERS = 6
FRAGILE = "c3"
"""Its weights for a channel that is always zero are huge: the grid of all others is too coarse."""


def write_fragile(folder: Path, *, labels: bool = True) -> Path:
    """Write six convolutions of which one is fragile, and samples with float's own decisions."""
    weights = {f"w{i}": weight(i, 16, 16, 3, 3) for i in range(LAYERS)}
    weights["w2"][0], weights["w3"][:, 0] = 0, 30
    body, value = "", "x"
    for i in range(LAYERS):
        body += (
            f"[c{i}] a{i} = Conv<pads = [1, 1, 1, 1]> ({value}, w{i})\n[r{i}] b{i} = Relu(a{i})\n"
        )
        value = f"b{i}"
    body += (
        f"[pool] p = GlobalAveragePool({value})\n[flat] f = Flatten(p)\n[last] y = Gemm(f, g, h)"
    )
    weights |= {"g": weight(9, 16, 8), "h": np.zeros(8, np.float32)}
    samples = [pictures(index) for index in range(60)]
    net = folder / "net.onnx", "float[1,16,12,12] x", body
    exact = Session(write_net(*net, **weights))
    found = np.concatenate([exact.run({"x": x})["y"] for x in samples])
    weights["h"] -= found.mean(0)  # or one class would always win
    (folder / "data").mkdir()
    for index, (x, y) in enumerate(zip(samples, found - found.mean(0), strict=True)):
        label = {"label": y.argmax()[None]} if labels else {}
        np.savez(folder / "data" / f"{index:02}.npz", x=x, **label)
    return write_net(*net, **weights)


def pictures(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    loud = np.exp(rng.standard_normal((1, 16, 1, 1)))
    return (rng.standard_normal((1, 16, 12, 12)) * loud).astype(np.float32)
