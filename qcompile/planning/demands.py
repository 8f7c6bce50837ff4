"""Why an execution provider does not take a node unit: its demands, one after another."""

import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir

from qcompile.errors import RuntimeMissingError
from qcompile.graph.walk import is_constant, is_op
from qcompile.planning.node_units import NodeUnit, code_type, grid, same_grid
from qcompile.targets.execution_provider import Codes, Demand, Provider

_PAIR = ("QuantizeLinear", "DequantizeLinear")

SIZES = "sizes that are not fixed"

_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")

_CLOSE = 1e-4
"""How near a scale must be to the one demanded: XNNPACK's own tolerance."""


class Judge:
    """Says why a provider does not take a unit."""

    def __init__(self, provider: Provider, model: ir.Model) -> None:
        self.provider = provider
        self.opsets = model.opset_imports
        self.listed = shipped_operators(provider.shipped) if provider.shipped else {}

    def reason(self, unit: NodeUnit) -> str:
        """Return the reason, or nothing for a unit that it takes."""
        if not (self.provider.quantized or self.provider.plain):
            return ""  # the CPU provider takes everything
        found = self._form(unit) or self._version(unit.node) or self._sizes(unit)
        return f"{found} (no node unit: {unit.broken})" if found and unit.broken else found

    def _form(self, unit: NodeUnit) -> str:
        node, name = unit.node, self.provider.name
        if unit.quantized:
            demand = self.provider.quantized.get(node.op_type)
            if demand is None:
                return f"{name} has no {node.op_type} on codes"
            return _codes_reason(unit, demand, name) or _demand_reason(unit, demand)
        demand = None if node.domain else self.provider.plain.get(node.op_type)
        if demand is None and operator_key(node) not in self.listed:
            return f"{name} has no {node.op_type}"
        if self.provider.float_ends and _is_end(node):
            return "codes of inputs and outputs are made on the CPU"
        demand = demand or Demand()
        return self._float_reason(node, demand) or _demand_reason(unit, demand)

    def _float_reason(self, node: ir.Node, demand: Demand) -> str:
        if is_op(node, *_PAIR):
            kinds = {codes.activation for codes in demand.codes}
            if kinds and code_type(node) not in kinds:
                return f"its codes are {code_type(node)}, not {' or '.join(sorted(kinds))}"
            return ""
        value = node.inputs[0] if node.inputs else None
        if value is None or value.dtype is None or is_op(node, "Cast"):
            return ""
        found = value.dtype.numpy().name
        floats = self.provider.floats
        return f"it computes in {found}" if floats and found not in floats else ""

    def _version(self, node: ir.Node) -> str:
        newest = self.provider.max_opset
        opset = self.opsets.get(node.domain)
        if newest is None or node.domain or opset is None:
            return ""
        version = _schema(node.op_type, opset).since_version
        return (
            f"{node.op_type} of opset {version}: known up to {newest}" if version > newest else ""
        )

    def _sizes(self, unit: NodeUnit) -> str:
        shapes = [_shape(v) for v in unit.inputs if v is not None and not is_constant(v)]
        highest = self.provider.max_rank
        if highest is not None and any(s is not None and len(s) > highest for s in shapes):
            return f"rank {max(len(s) for s in shapes if s is not None)}: at most {highest}"
        if self.provider.fixed and not all(_known(shape, 0) for shape in shapes):
            return SIZES
        return ""


def _codes_reason(unit: NodeUnit, demand: Demand, name: str) -> str:
    """Return why the types of a unit's codes do not suit, or nothing."""
    first = unit.before[0]
    activation = code_type(first) if first is not None else ""
    weight = unit.before[1] if len(unit.before) > 1 and _has_weights(demand) else None
    found = _Found(activation, weight)
    if not any(found.suits(codes) for codes in demand.codes):
        wanted = " or ".join(_words(codes) for codes in demand.codes)
        return f"codes are {found.words()}; {name} takes {wanted}"
    made = grid(unit.behind[0])
    if demand.grid is not None and made is not None:
        scale, zero = demand.grid
        if (
            abs(float(made[0].reshape(-1)[0]) - scale) > _CLOSE
            or int(made[1].reshape(-1)[0]) != zero
        ):
            return f"what it makes must have scale {scale:g} and zero point {zero}"
    if demand.one_grid and first is not None and not same_grid(first, unit.behind[0]):
        return "what it reads and makes must have one scale and zero point"
    return ""


class _Found:
    """The codes of one unit: type of activations, DequantizeLinear of the weights."""

    def __init__(self, activation: str, weight: ir.Node | None) -> None:
        self.activation = activation
        self.weight = None if weight is None else code_type(weight)
        found = None if weight is None else grid(weight)
        self.per_channel = found is not None and found[0].size > 1
        self.symmetric = found is None or not np.any(found[1])

    def suits(self, codes: Codes) -> bool:
        """Return whether the combination is this one."""
        channels = not self.per_channel or (codes.per_channel and self.symmetric)
        return (codes.activation, codes.weight) == (self.activation, self.weight) and channels

    def words(self) -> str:
        """Return them as people say it."""
        if self.weight is None:
            return self.activation
        place = " by channel" if self.per_channel else ""
        return f"{self.activation} with {self.weight} weights{place}"


def _words(codes: Codes) -> str:
    if codes.weight is None:
        return codes.activation
    return f"{codes.activation} with {codes.weight}" + (" by channel" if codes.per_channel else "")


def _has_weights(demand: Demand) -> bool:
    return any(codes.weight is not None for codes in demand.codes)


def _demand_reason(unit: NodeUnit, demand: Demand) -> str:
    """Return what inputs, ranks, sizes or attributes the provider would need, or nothing."""
    inputs = unit.inputs
    for index in demand.constants:
        value = inputs[index] if index < len(inputs) else None
        if value is not None and not is_constant(value):
            return f"input {index} is not constant"
    count = max((n for n, value in enumerate(inputs, 1) if value is not None), default=0)
    if demand.inputs is not None and count > demand.inputs:
        return f"it has {count} inputs: takes {demand.inputs}"
    shape = _shape(inputs[0]) if inputs else None
    if demand.ranks and (shape is None or len(shape) not in demand.ranks):
        rank = "unknown rank" if shape is None else f"rank {len(shape)}"
        return f"{rank}: takes {' or '.join(map(str, demand.ranks))}"
    if demand.sized_from is not None and not _known(shape, demand.sized_from):
        return SIZES
    for name, allowed in demand.attributes.items():
        found = _attribute(unit.node, name, len(shape) if shape is not None else None)
        if found is not None and found not in allowed:
            return f"{name}={_plain(found)}: takes {' or '.join(map(_plain, allowed))}"
    return ""


def _attribute(node: ir.Node, name: str, rank: int | None) -> Any:  # noqa: ANN401 - as in ONNX
    """Return an attribute, or the standard's default; an axis from the end where it can be."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        value = attribute.value
    else:
        opset = node.graph.opset_imports.get("", 0) if isinstance(node.graph, ir.Graph) else 0
        known = _schema(node.op_type, opset).attributes.get(name)
        default = None if known is None else known.default_value
        if default is None or not default.type:
            return None
        value = onnx.helper.get_attribute_value(default)
    if name == "axis" and rank is not None and value >= 0:
        return value - rank
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@functools.cache
def _schema(op: str, opset: int) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(op, opset or onnx.defs.onnx_opset_version())


def _plain(value: object) -> str:
    return value if isinstance(value, str) else str(value).replace(" ", "")


def _shape(value: ir.Value | None) -> tuple[object, ...] | None:
    return None if value is None or value.shape is None else tuple(value.shape)


def _known(shape: tuple[object, ...] | None, start: int) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape[start:])


def _is_end(node: ir.Node) -> bool:
    if is_op(node, "QuantizeLinear"):
        value = node.inputs[0]
        return value is not None and value.is_graph_input()
    return is_op(node, "DequantizeLinear") and node.outputs[0].is_graph_output()


def operator_key(node: ir.Node) -> str:
    """Return ``domain:operator`` as the shipped lists are keyed."""
    return f"{node.domain or 'ai.onnx'}:{node.op_type}".lower()


@functools.cache
def shipped_operators(name: str) -> Mapping[str, str]:
    """Read a list of operators that the onnxruntime wheel ships for a provider.

    Args:
        name: A file of ``onnxruntime/tools/mobile_helpers``.

    Returns:
        ``domain:operator`` in lower case (the lists themselves are not of one mind) to its note.

    Raises:
        RuntimeMissingError: onnxruntime is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    paths = [Path(folder) / "tools" / "mobile_helpers" / name for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise RuntimeMissingError(
            f"{name} is not there: it comes with onnxruntime; pip install 'qcompile[cpu]'"
        )
    found = {}
    for line in path.read_text("utf-8").splitlines():
        _, operator, note, *_ = [*line.split("|"), "", "", ""]
        domain, _, op = operator.strip().rpartition(":" if ":" in operator else ".")
        if domain and op:
            plain = _LINK.sub(r"\1", note.replace("<br/>", " "))
            found[f"{domain}:{op}".lower()] = " ".join(plain.split())
    return found
