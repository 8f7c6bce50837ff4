"""The plan: what the compiler decided for each tensor and each node, and why. JSON, editable."""

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator, model_validator

from qcompile.errors import PlanError
from qcompile.frozen import Frozen
from qcompile.numerics.grids import CODE_RANGE, code_dtype
from qcompile.numerics.groups import WeightFormat
from qcompile.remedies import Remedies

CodeType = Literal["uint8", "int8", "int32", "float8e4m3fn"]
Kind = Literal["activation", "weight", "bias"]
Precision = Literal["int8", "int8-dynamic", "weight-only", "fp8", "fp16", "bf16", "float"]
Algorithm = Literal["rtn", "gptq", "awq", "awq+gptq", "adaround"]
WeightForm = Literal["nbits", "dequantize"]

GROUP_SIZES = (0, 16, 32, 64, 128, 256)
"""What operators take: 0 is the whole channel; kernels want powers of two."""

FLOATS: tuple[Precision, ...] = ("fp16", "bf16", "float")
"""Precisions without codes."""

CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")
"""Precisions, and the schemes of that name, whose activations have a grid in the plan."""


class TensorPlan(Frozen):
    """How one tensor is stored: ``real = scale * (code - zero_point)``.

    Attributes:
        kind: activation (quantized at run time), weight or bias (stored as codes).
        type: Type of the codes.
        axis: The channel axis for per-channel scales; None for per-tensor.
        scale: One step, or one a channel. Positive.
        zero_point: The code of 0.0, one for each scale.
        reduce_range: The codes use 7 bits (CPUs whose 8-bit kernels saturate).
        method: How the range of an activation was found (minmax, percentile, mse, entropy, search,
            tied to another, user), or the codes of a weight (minmax: nearest; gptq, adaround,
            brecq: solved for).
        errors: Relative L2 error that each method tried made at the readers' outputs.
    """

    kind: Kind
    type: CodeType
    axis: int | None = None
    scale: Annotated[list[float], Field(min_length=1)]
    zero_point: Annotated[list[int], Field(min_length=1)]
    reduce_range: bool = False
    method: str = "user"
    errors: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "TensorPlan":
        if len(self.scale) != len(self.zero_point):
            raise ValueError("scale and zero_point differ in length")
        if self.axis is None and len(self.scale) != 1:
            raise ValueError("several scales need an axis")
        if not all(s > 0 for s in self.scale):
            raise ValueError("scales must be positive")
        low, high = CODE_RANGE[self.type]
        if not all(low <= z <= high for z in self.zero_point):
            raise ValueError(f"zero_point outside the range of {self.type}")
        return self

    def scales(self) -> npt.NDArray[np.float32]:
        """Return the scale, float32, rank 0 for per-tensor, ``(C,)`` for per-channel."""
        array = np.asarray(self.scale, np.float32)
        return array[0] if self.axis is None else array

    def zero_points(self) -> npt.NDArray[np.generic]:
        """Return the zero point in the type of the codes, shaped like ``scales``."""
        array = np.asarray(self.zero_point).astype(code_dtype(self.type))
        return array[0] if self.axis is None else array

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and highest real value of a per-tensor grid."""
        low, high = CODE_RANGE[self.type]
        return (
            self.scale[0] * (low - self.zero_point[0]),
            self.scale[0] * (high - self.zero_point[0]),
        )


class WeightPlan(Frozen):
    """How one weight is stored for nodes that compute in float: few bits, a scale for each group.

    Attributes:
        bits: Of one code.
        group_size: Weights along the reduction axis that share a scale; 0 for the whole channel.
        symmetric: The zero point is the middle of the codes.
        scale_type: Of the scales; the type that the graph computes in.
        algorithm: What solved for the codes.
        errors: Relative L2 error of the readers' outputs on held-back samples, by algorithm.
        accuracy_level: Of ``MatMulNBits``: 0 computes as the graph is typed, 4 with int8
            activations. None for standard operators: the runtime decides.
        level_error: Relative L2 error that the level adds at the readers' outputs, if measured.
        input_scaled: The codes are of the weight times a scale a column (AWQ).
        permuted: The codes stand in another order of columns (act-order without static groups).
        compensate: The weight may make up for the errors of earlier layers.
        inherited: What these errors are at the readers' outputs, relative L2 on held-back samples.
        left: What the weight leaves of it before it is rounded; ``errors`` are those of rounding.
        form: nbits (``com.microsoft::MatMulNBits``) or dequantize (``DequantizeLinear``).
    """

    bits: Literal[2, 3, 4, 8]
    group_size: int
    symmetric: bool = True
    scale_type: Literal["float32", "float16"] = "float32"
    algorithm: Algorithm = "rtn"
    errors: dict[Algorithm, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    level_error: Annotated[float, Field(ge=0)] | None = None
    input_scaled: bool = False
    permuted: bool = False
    compensate: bool = False
    inherited: Annotated[float, Field(ge=0)] | None = None
    left: Annotated[float, Field(ge=0)] | None = None
    form: WeightForm = "nbits"

    @field_validator("group_size")
    @classmethod
    def _known(cls, size: int) -> int:
        if size not in GROUP_SIZES:
            known = ", ".join(map(str, GROUP_SIZES))
            raise ValueError(f"{size} is no size that operators take: {known}")
        return size

    def format(self) -> WeightFormat:
        """Return the format of the codes and scales."""
        return WeightFormat(self.bits, self.group_size, self.symmetric, self.scale_type)


class NodePlan(Frozen):
    """What one node computes in, and why.

    Attributes:
        op: Operator type, for the reader and as a check.
        precision: int8 or fp8 (static), int8-dynamic (activations quantized at run time),
            weight-only (float, with its weight stored in few bits), fp16, bf16 or float.
        reason: Why: the rule, the measured error, the user's exclusion.
    """

    op: str
    precision: Precision
    reason: str


class Plan(Frozen):
    """All decisions for one model on one target; tensors, weights and nodes go by name."""

    version: Literal[1] = 1
    model: str = Field(description="sha256 of the canonical graph that the names belong to")
    target: str
    device: str
    scheme: str
    tensors: dict[str, TensorPlan]
    weights: dict[str, WeightPlan] = Field(default_factory=dict)
    remedies: Remedies = Remedies()
    nodes: dict[str, NodePlan]

    def precision(self, node: str) -> Precision:
        """Return the precision of a node; nodes that are not listed stay in float."""
        entry = self.nodes.get(node)
        return entry.precision if entry else "float"

    def is_quantized(self, node: str) -> bool:
        """Return whether a node computes with codes."""
        return self.precision(node) not in FLOATS

    def text(self) -> str:
        """Return the JSON, stable and with one line for each entry; empty sections are left out."""
        body = self.model_dump(mode="json", exclude_defaults=False)
        remedies = body.pop("remedies") if self.remedies else {}
        body.pop("remedies", None)
        lines = [f'  "{k}": {json.dumps(v)},' for k, v in body.items() if k not in _SECTIONS]
        lines += _nested("remedies", remedies)
        for section in _SECTIONS:
            entries = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in body[section].items()]
            if not entries and section == "weights":
                continue
            joined = ",\n".join(entries)
            lines.append(f'  "{section}": {{\n{joined}\n  }}{"" if section == "nodes" else ","}')
        return "{\n" + "\n".join(lines) + "\n}\n"


_SECTIONS = ("tensors", "weights", "nodes")


def _nested(name: str, sections: dict[str, object]) -> list[str]:
    """Return a section of sections and of single values, with one line for each entry."""
    parts = []
    for section, entries in sections.items():
        if entries and not isinstance(entries, dict):
            parts.append(f"    {json.dumps(section)}: {json.dumps(entries)}")
        elif isinstance(entries, dict) and entries:
            each = [f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items()]
            joined = ",\n".join(each)
            parts.append(f"    {json.dumps(section)}: {{\n{joined}\n    }}")
    body = ",\n".join(parts)
    return [f'  "{name}": {{\n{body}\n  }},'] if parts else []


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: The file is missing, is not JSON, or breaks the schema; names the entry.
    """
    try:
        return Plan.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise PlanError(f"{path}: {where}: {first['msg']}") from error
