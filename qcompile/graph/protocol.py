"""What a pass is: a frozen dataclass that rewrites a graph and says what it needs and changes."""

import enum
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import onnx_ir as ir

from qcompile.errors import PassError


class Fact(enum.Enum):
    """Something that holds of the whole graph; the value says it in words."""

    INLINED = "no model-local functions are left"
    WORKING_OPSET = "the default domain is at the working opset"
    TYPED = "every value has a type, and a shape where one can be inferred"
    NAMED = "every node and value has a unique name"
    NO_BATCH_NORM = "no batch norm behind a Conv, ConvTranspose or Gemm is left"
    CANONICAL = "patterns are in the form that targets list"
    QDQ = "quantized tensors carry QuantizeLinear and DequantizeLinear"
    INPUTS_SCALED = "what weight-only nodes read is divided by the input scales of their weights"


class Effect(enum.Enum):
    """How far outputs may move; the value is the tolerance of the numeric test (relative L2)."""

    EXACT = 0.0
    REASSOCIATES = 1e-5
    LOSSY = float("inf")


@dataclass(frozen=True, kw_only=True)
class GraphPass(ir.passes.InPlacePass):
    """One rewrite of a graph, in place.

    Subclasses set ``name``, the facts and the effect, declare their options as fields (int, float,
    bool, str, enum or tuples of these) and implement ``rewrite``. Whatever a pass is given besides
    options (plan, statistics) is a field with ``repr=False, compare=False``.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    effect: ClassVar[Effect]

    refusals: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Change the model; return whether anything changed."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run ``rewrite`` as onnx_ir's pass protocol wants it."""
        self.refusals.clear()
        return ir.passes.PassResult(model, modified=self.rewrite(model))

    def refuse(self, reason: str) -> None:
        """Count a place that matched but was left alone, with the reason."""
        self.refusals[reason] += 1

    def options(self) -> dict[str, Any]:
        """Return the options as plain data, for the report."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.repr}


def check_order(passes: list[GraphPass], holds: frozenset[Fact] = frozenset()) -> frozenset[Fact]:
    """Check needs, gives and breaks over a list before anything runs; return what holds after.

    Raises:
        PassError: A pass needs a fact that no earlier pass gives.
    """
    for step in passes:
        for fact in sorted(step.needs - holds, key=lambda f: f.name):
            raise PassError(f"pass {step.name} needs {fact.name} ({fact.value}); put a pass first")
        holds = (holds - step.breaks) | step.gives
    return holds
