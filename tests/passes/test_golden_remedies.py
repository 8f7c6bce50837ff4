"""Golden cases of the passes that apply remedies, and their contract; names say what is done."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from qcompile.graph.channels import channels_of
from qcompile.graph.protocol import GraphPass
from qcompile.passes.absorb_bias import AbsorbBias
from qcompile.passes.correct_bias import CorrectBias
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.remedies import Correction, Outliers, Remedies, Rescaled, Shifted
from tests.passes.golden import (
    case_test,
    cases,
    check_equivalence,
    description_test,
    golden_test,
    read,
)
from tests.passes.tools import prepared


def rescaling(model: ir.Model) -> RescaleChannels:
    """Values called smooth_... and equal_... are divided by 2, 3, 4, ..."""
    values = [out for node in model.graph for out in node.outputs]
    found = {}
    for value in values:
        how, _, rest = str(value.name).partition("_")
        if how in ("smooth", "equal") and "." not in rest:
            remedy, axis = ("smoothquant", -1) if how == "smooth" else ("equalize", 1)
            scale = [2.0 + i for i in range(channels_of(value, axis))]
            found[value.name] = Rescaled(remedy=remedy, axis=axis, scale=scale)
    return RescaleChannels(remedies=Remedies(rescaled=found))


def absorbing(model: ir.Model) -> AbsorbBias:
    """Values called shift_... lose 1, 2, 3, ... by channel."""
    values = [out for node in model.graph for out in node.outputs]
    found = {
        value.name: Shifted(shift=[1.0 + i for i in range(channels_of(value, 1))])
        for value in values
        if str(value.name).startswith("shift_")
    }
    return AbsorbBias(remedies=Remedies(shifted=found))


def splitting(model: ir.Model) -> SplitOutliers:
    """Nodes called split_... lose columns 1 and 3, nodes called find_... what they find."""
    outliers = {}
    for node in model.graph:
        how, _, _ = str(node.name).partition("_")
        if how in ("split", "find"):
            run_time = how == "find"
            channels = [] if run_time else [1, 3]
            outliers[str(node.name)] = Outliers(
                channels=channels, columns=4, threshold=1.0, run_time=run_time
            )
    return SplitOutliers(remedies=Remedies(outliers=outliers))


def correcting(model: ir.Model) -> CorrectBias:
    """Nodes called correct_... have the corrections 0.5, 1.5, 2.5."""
    names = [node.name or "" for node in model.graph if (node.name or "").startswith("correct_")]
    correction = Correction(how="empirical", bias=[0.5, 1.5, 2.5])
    return CorrectBias(remedies=Remedies(corrected=dict.fromkeys(names, correction)))


STEPS: dict[type[GraphPass], Callable[[ir.Model], GraphPass]] = {
    RescaleChannels: rescaling,
    AbsorbBias: absorbing,
    SplitOutliers: splitting,
    CorrectBias: correcting,
}
CASES = cases(kind.name for kind in STEPS)


def loaded(path: Path) -> tuple[ir.Model, GraphPass]:
    """Read a case; names of values and nodes say what its pass is given."""
    (kind,) = (kind for kind in STEPS if kind.name == path.parent.name)
    model = prepared(read(path)[1], kind())
    return model, STEPS[kind](model)


test_golden = golden_test(CASES, loaded)


test_contract = case_test(CASES, loaded, check_equivalence)


test_describes_itself = description_test(STEPS)


def test_refused_corrections_are_counted() -> None:
    (path,) = (p for p in CASES if (p.parent.name, p.stem) == ("correct-bias", "refused"))
    model, step = loaded(path)
    step(model)
    assert sum(step.refusals.values()) == 3
    assert len(step.refusals) == 3
