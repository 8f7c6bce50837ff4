"""The two types of half size, and which inputs and outputs of an operator can have them."""

import functools
from dataclasses import dataclass

import numpy as np
import onnx.defs
import onnx_ir as ir

from qcompile.graph.walk import is_op, subgraphs

MOVES = (
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
"""Operators whose outputs are some of their inputs' numbers: exact in any type."""

ENGINES_OPSET = 24
"""The newest opset that TensorRT documents (11.1): later schemas take halves that no engine has."""

SCALES = {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMulNBits": 2}
"""Operator to the index of its scales, which must be the same numbers in the half type."""

_CONTRIB: dict[str, tuple[frozenset[int], frozenset[int]]] = {
    "BiasGelu": (frozenset(), frozenset()),
    "FastGelu": (frozenset(), frozenset()),
    "FusedMatMul": (frozenset(), frozenset()),
    "GroupQueryAttention": (frozenset({12, 13}), frozenset()),
    "MatMulNBits": (frozenset(), frozenset()),
    "MultiHeadAttention": (frozenset(), frozenset()),
    "QuickGelu": (frozenset(), frozenset()),
    "RotaryEmbedding": (frozenset(), frozenset()),
    "SkipLayerNormalization": (frozenset(), frozenset({1, 2})),
    "SkipSimplifiedLayerNormalization": (frozenset(), frozenset({1, 2})),
}
"""Operators of com.microsoft that take halves: their inputs and outputs that stay float32."""


@dataclass(frozen=True)
class Half:
    """A floating-point type of 16 bits.

    Attributes:
        name: As ONNX and numpy write it.
        dtype: Its element type.
        largest: Largest finite number.
        smallest: Smallest positive number that has all bits (a normal number).
        bits: Of the significand, the hidden one included.
    """

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float
    bits: int

    @property
    def spacing(self) -> float:
        """Return the distance from 1 to the next number, half of which rounding may move it."""
        return 2.0 ** (1 - self.bits)

    def cast(self, array: np.ndarray) -> np.ndarray:
        """Round to the nearest number of this type; beyond the largest to infinity."""
        with np.errstate(over="ignore", under="ignore"):
            rounded: np.ndarray = array.astype(self.dtype.numpy())
        return rounded

    def fits(self, array: np.ndarray) -> bool:
        """Return whether no finite number is beyond the largest one."""
        return largest_magnitude(array) <= self.largest

    def is_exact(self, array: np.ndarray) -> bool:
        """Return whether all numbers are ones of this type, and none is 0."""
        finite = bool((array != 0).all()) and self.fits(array)
        return finite and np.array_equal(self.cast(array).astype(array.dtype), array)


FLOAT16 = Half("float16", ir.DataType.FLOAT16, 65504.0, 2.0**-14, 11)
BFLOAT16 = Half("bfloat16", ir.DataType.BFLOAT16, float.fromhex("0x1.fep127"), 2.0**-126, 8)
HALVES = {half.name: half for half in (FLOAT16, BFLOAT16)}


def largest_magnitude(array: np.ndarray) -> float:
    """Return the largest magnitude of the finite numbers; 0 where there is none."""
    if not array.size:
        return 0.0
    low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return max(-low, high)
    return float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))


@dataclass(frozen=True)
class Slots:
    """The indices of a node's float32 inputs and outputs that can have a half type."""

    inputs: frozenset[int]
    outputs: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


def is_float32(value: ir.Value | None) -> bool:
    """Return whether the value is a float32 tensor: no sequence of them, and of known type."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype == ir.DataType.FLOAT
    )


def half_slots(node: ir.Node, opset: int, half: Half) -> Slots:
    """Return what can turn half, as the operator's schema has it.

    Args:
        node: Of the default domain or com.microsoft; others have no slots.
        opset: Version of the default domain.
        half: The type asked for.
    """
    inputs = [i for i, value in enumerate(node.inputs) if is_float32(value)]
    outputs = [i for i, value in enumerate(node.outputs) if is_float32(value)]
    if is_op(node, "Cast", "ConstantOfShape"):  # their type is an attribute
        return Slots(frozenset(inputs), frozenset(outputs))
    if node.domain == "com.microsoft" and node.op_type in _CONTRIB:
        stay_in, stay_out = _CONTRIB[node.op_type]
        return Slots(frozenset(inputs) - stay_in, frozenset(outputs) - stay_out)
    schema = None if node.domain else _schema(node.op_type, opset)
    if schema is None:
        return Slots(frozenset(), frozenset())
    halved = {i for i in inputs if half.name in schema.input_types(i)}
    bound = {schema.inputs[min(i, len(schema.inputs) - 1)] for i in halved}
    if is_op(node, "DequantizeLinear") and halved:
        return Slots(frozenset(halved), frozenset(outputs))
    free = {i for i in outputs if schema.outputs[min(i, len(schema.outputs) - 1)] in bound}
    return Slots(frozenset(halved), frozenset(free))


def newest_slots(node: ir.Node, half: Half) -> Slots:
    """Return what can turn half at the newest opset of engines; nothing where bodies are."""
    if subgraphs(node):
        return Slots(frozenset(), frozenset())
    return half_slots(node, ENGINES_OPSET, half)


def newer_opset(op_type: str, opset: int, half: Half) -> int | None:
    """Return the first later opset whose operator of that name takes the type, or None."""
    for later in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        schema = _schema(op_type, later)
        if schema is not None and any(half.name in types for types in schema.types.values()):
            return later
    return None


@dataclass(frozen=True)
class _Schema:
    """Type variables of the inputs and outputs, and the float types that each may be."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, frozenset[str]]

    def input_types(self, index: int) -> frozenset[str]:
        """Return the types of an input; the last one stands for all that follow."""
        return self.types.get(self.inputs[min(index, len(self.inputs) - 1)], frozenset())


@functools.cache
def _schema(op_type: str, opset: int) -> _Schema | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    types = {
        c.type_param_str: frozenset(
            t.removeprefix("tensor(").removesuffix(")") for t in c.allowed_type_strs
        )
        for c in schema.type_constraints
    }
    return _Schema(
        tuple(p.type_str for p in schema.inputs), tuple(p.type_str for p in schema.outputs), types
    )
