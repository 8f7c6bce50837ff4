"""What a lint rule is: one small function over a graph, with its severity and its source."""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import onnx_ir as ir

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
"""Names of the targets that have rules."""


class Severity(enum.Enum):
    """What breaking a rule costs; the value says it in words."""

    ERROR = "does not parse or build"
    FLOAT = "builds, but computes in float what was quantized"
    NUMERICS = "builds, but computes something else"
    WARNING = "may cost speed or accuracy"


@dataclass(frozen=True)
class Setting:
    """What a model is checked for.

    Attributes:
        flavour: TensorRT, or TensorRT for RTX.
        version: Major version of TensorRT.
        sms: Compute capabilities of the devices, as in ``--sm``: 87 is 8.7. Empty: not known.
        profiles: Input name to its least, best and largest shape, where they were given.
    """

    flavour: Flavour = "tensorrt"
    version: int = 11
    sms: tuple[int, ...] = ()
    profiles: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a rule is broken, and how.

    Attributes:
        where: Name of the node, or else of the tensor.
        what: What is wrong there and what to do, one sentence without a full stop.
    """

    where: str
    what: str


Check = Callable[[ir.Model, Setting], Iterator[Place]]


@dataclass(frozen=True)
class Rule:
    """One rule of a parser, a builder, or of what is known to lose.

    Attributes:
        name: ``L01`` and so on, as in the docs.
        title: What must hold, in one line.
        severity: See ``Severity``.
        source: Where the rule was found: parser, builder, experiment, documentation.
        check: Yields each place that breaks it.
    """

    name: str
    title: str
    severity: Severity
    source: str
    check: Check


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    rule: str
    severity: Severity
    where: str
    what: str


def refusal(found: Sequence[Finding]) -> str:
    """Return the first finding that forbids a model, and how many more do; empty without one."""
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    if not errors:
        return ""
    first, more = errors[0], len(errors) - 1
    others = f" (and {more} more: qcompile check lists them)" if more else ""
    return f"{first.where}: {first.what} ({first.rule}){others}"


def findings(model: ir.Model, setting: Setting, rules: tuple[Rule, ...]) -> list[Finding]:
    """Return everything that breaks a rule, in the order of the rules.

    Args:
        model: With types and shapes where they can be inferred; it is not changed.
        setting: What it is checked for.
        rules: Those to check.
    """
    return [
        Finding(rule.name, rule.severity, place.where, place.what)
        for rule in rules
        for place in rule.check(model, setting)
    ]
