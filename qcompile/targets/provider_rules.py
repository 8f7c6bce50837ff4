"""Operator rules of execution providers that compute on codes: from the CPU target's, or new."""

from dataclasses import replace

from qcompile.targets.execution_provider import UNITS, Unit
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import OperatorRule, Output, Role


def rules(*ops: str) -> dict[str, OperatorRule]:
    """Return rules of the CPU target, for nodes between which only codes flow."""
    return {op: replace(ORT_CPU.static[op], output=Output.CODES, kernels=()) for op in ops}


def products() -> dict[str, OperatorRule]:
    """Return rules for products whose weights are uint8 with one scale."""
    return {op: replace(rule, per_tensor=True) for op, rule in rules("Gemm", "MatMul").items()}


def followers(*ops: str) -> dict[str, OperatorRule]:
    """Return rules for nodes that compute on codes; other inputs of unary ones are not codes."""
    unary = (Unit.MOVED, Unit.UNARY)
    return {
        op: OperatorRule(op, Role.FOLLOWER, activations=(0,) if UNITS[op] in unary else ())
        for op in ops
    }


def carriers(*ops: str) -> dict[str, OperatorRule]:
    """Return rules for nodes that move codes."""
    return {op: OperatorRule(op, Role.CARRIER, activations=(0,)) for op in ops}


def norms() -> dict[str, OperatorRule]:
    """Return rules for nodes whose factors are uint8 codes, their summands int32 ones."""
    ops = (op for op, unit in UNITS.items() if unit is Unit.NORM)
    return {
        op: OperatorRule(op, Role.FOLLOWER, activations=(0,), weight=1, bias=2, per_tensor=True)
        for op in ops
    }
