"""Training against calibration alone: ResNet-20 on CIFAR-10, int8 and fewer bits."""

from qcompile import qat
from qcompile.progress import Silent
from qcompile.recipe import Recipe
from tests.assets import ASSETS
from tests.benchmarks.table import Table
from tests.qat.cifar import train_cifar

EPOCHS = 4
FORMS = {
    "W8A8": qat.Rounding(),
    "W4A8": qat.Rounding(weights=4),
    "W4A8, learned": qat.Rounding(weights=4, learned=True),
    "W4A4, learned": qat.Rounding(weights=4, activations=4, learned=True),
}
PACKAGES = ("torch", "torchao", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy")
HEADS = ("codes", "float", "calibrated", "trained", "regained")


def measure(epochs: int = EPOCHS) -> Table:
    """Train each form on 512 pictures without labels; score 2000 others."""
    table = Table(f"Training, {epochs} epochs", list(HEADS))
    for name, rounding in FORMS.items():
        rate = 2e-5 if name == "W8A8" else 1e-4
        training = qat.Training(epochs=epochs, rate=rate)
        found = train_cifar.train(ASSETS, Recipe(), rounding, training, Silent())
        lost = found.float_score - found.start
        share = (found.trained - found.start) / lost if lost > 0.005 else None
        table.add(
            name,
            *(f"{100 * x:.2f}" for x in (found.float_score, found.start, found.trained)),
            "-" if share is None else f"{share:.0%}",
        )
    return table
