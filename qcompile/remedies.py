"""What is done to a float graph so that 8 bits cost it less; a part of the plan.

A remedy changes constants, or splits a product in two, and leaves what the graph computes as it
was, to float rounding; shifts and corrections do so on average. Values and nodes go by their names
in the canonical graph.
"""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from qcompile.frozen import Frozen

Remedy = Literal["equalize", "absorb-bias", "smoothquant", "llm-int8", "bias-correction"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Rescaled(Frozen):
    """A value that is divided by a number for each channel; what reads it multiplies them again.

    Attributes:
        remedy: equalize (arXiv:1906.04721) or smoothquant (arXiv:2211.10438).
        axis: Of the channels: 1 behind a Conv, -1 before a MatMul or Gemm.
        scale: Of each channel.
        strength: SmoothQuant's alpha: how much of the range moves from activation to weight.
    """

    remedy: Literal["equalize", "smoothquant"]
    axis: int
    scale: Annotated[list[Positive], Field(min_length=1)]
    strength: Annotated[float, Field(ge=0, le=1)] | None = None

    def scales(self) -> npt.NDArray[np.float32]:
        """Return the scale, float32 ``(C,)``."""
        return np.asarray(self.scale, np.float32)


class Shifted(Frozen):
    """A value from which a number for each channel is taken; what reads it adds their effect.

    Attributes:
        shift: Of each channel of axis 1; 0 or more (arXiv:1906.04721, section 4.1.3).
    """

    shift: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]

    def shifts(self) -> npt.NDArray[np.float32]:
        """Return the shift, float32 ``(C,)``."""
        return np.asarray(self.shift, np.float32)


class Outliers(Frozen):
    """Columns of a layer's input that are multiplied in float (LLM.int8(), arXiv:2208.07339).

    Attributes:
        channels: Their indices on the last axis, ascending; empty where they are found at run time.
        columns: That the input has.
        threshold: Magnitude from which a column was one.
        run_time: The columns are found anew for each input, as in the paper.
    """

    channels: list[Annotated[int, Field(ge=0)]]
    columns: Annotated[int, Field(ge=1)]
    threshold: Positive
    run_time: bool = False


class Correction(Frozen):
    """What is added to a node's bias, so that rounding does not move its mean output.

    Attributes:
        how: empirical (measured on calibration samples) or analytic (arXiv:1906.04721, 4.2).
        bias: A number for each output channel.
    """

    how: Literal["empirical", "analytic"]
    bias: Annotated[list[Finite], Field(min_length=1)]

    def values(self) -> npt.NDArray[np.float32]:
        """Return what is added, float32 ``(C,)``."""
        return np.asarray(self.bias, np.float32)


class Learned(Frozen):
    """How the codes of weights were learned (AdaRound, BRECQ).

    Attributes:
        steps: Of the optimizer, for each layer or block.
        seed: Of all chance.
    """

    steps: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]


class Remedies(Frozen):
    """All remedies of one model.

    Attributes:
        rescaled: By value.
        shifted: By value.
        outliers: By node.
        corrected: By node.
        learned: For codes of weights that are learned; None where none are.
        by_row: Activations that are rounded at run time have a scale for each row (LLM.int8()).
    """

    rescaled: dict[str, Rescaled] = Field(default_factory=dict)
    shifted: dict[str, Shifted] = Field(default_factory=dict)
    outliers: dict[str, Outliers] = Field(default_factory=dict)
    corrected: dict[str, Correction] = Field(default_factory=dict)
    learned: Learned | None = None
    by_row: bool = False

    def __bool__(self) -> bool:
        """Say whether there are any."""
        changes = self.rescaled or self.shifted or self.outliers or self.corrected
        return bool(changes) or self.learned is not None or self.by_row
