"""What is asked of training beside the recipe: how it rounds."""

from dataclasses import dataclass
from typing import Literal

Width = Literal[4, 8]


@dataclass(frozen=True)
class Rounding:
    """How weights and activations are rounded in training.

    Attributes:
        weights: Of weight codes. Those of 4 bits lie in -7 to 7 and are stored as int8, so that
            the int8 kernels of the target take them.
        activations: Of activation codes. Those of 4 bits are stored as uint4 or int4: no target
            computes with them, so that the engine is a simulation.
        learned: Scales are trained, too (LSQ, arXiv:1902.08153).

    The first and the last weighted layers keep 8 bits, with what they read, as in the experiments
    of Esser et al. (arXiv:1902.08153, section 3).
    """

    weights: Width = 8
    activations: Width = 8
    learned: bool = False
