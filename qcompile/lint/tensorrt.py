"""The lint of TensorRT and TensorRT for RTX: all rules of a graph, in order.

L43 and L44, and L46 again, are of scripts: ``qcompile/lint/scripts.py``.
"""

import onnx_ir as ir

from qcompile.graph.walk import all_nodes
from qcompile.lint import (
    devices,
    ort_options,
    parsing,
    placement,
    ports,
    precision,
    scales,
    weights,
)
from qcompile.lint.rule import Finding, Rule, Setting, findings
from qcompile.lint.typed import infer
from qcompile.progress import Progress

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *parsing.RULES,
            *scales.RULES,
            *precision.RULES,
            *ports.RULES,
            *devices.RULES,
            *placement.RULES,
            *weights.RULES,
            *ort_options.RULES,
        ),
        key=lambda rule: rule.name,
    )
)


def check_model(model: ir.Model, setting: Setting, progress: Progress) -> list[Finding]:
    """Return everything that breaks a rule, in the order of the rules.

    Args:
        model: Any model; the types and shapes of its values are written down where they can be
            inferred, nothing else changes.
        setting: What it is checked for.
        progress: Hears of tensors whose type or shape is not known.
    """
    infer(model)
    made = [value for node, _ in all_nodes(model) for value in node.outputs if value.name]
    unknown = sum(value.dtype is None or value.shape is None for value in made)
    if unknown:
        progress.notice(
            f"type or shape of {unknown} of {len(made)} tensors cannot be inferred: rules that "
            "depend on them were not checked there"
        )
    return findings(model, setting, RULES)
